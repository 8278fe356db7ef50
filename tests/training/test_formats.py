"""Frozen weights may be narrow or quantized; what is trained is float32."""

import json
from types import SimpleNamespace

import pytest
import torch
from micro import write_config
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, set_hf_deepspeed_config, unset_hf_deepspeed_config

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor, hardware
from vargpt_hf.training.formats import loaded_whole
from vargpt_hf.training.script import make_trainer, parse


@pytest.fixture
def narrow(base, tmp_path):
    """The micro model as it would be downloaded, in bfloat16."""
    VargptForConditionalGeneration.from_pretrained(base, dtype="bfloat16").save_pretrained(tmp_path / "narrow")
    VargptProcessor.from_pretrained(base).save_pretrained(tmp_path / "narrow")
    return tmp_path / "narrow"


def trainer_of(tmp_path, model, **keys):
    return make_trainer(*parse(write_config(tmp_path, model, **{"max_steps": 1, "save_strategy": "no", **keys})))[0]


def losses(trainer) -> list[float]:
    return [entry["output_image_loss"] for entry in trainer.state.log_history if "output_image_loss" in entry]


def test_trained_weights_are_float32_and_frozen_ones_as_stored(narrow, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "is_fast", lambda device, dtype: True)
    trainer = trainer_of(tmp_path, narrow, stage="stage3", dtype="auto", bf16=True)
    found = {parameter.requires_grad: set() for parameter in trainer.model.parameters()}
    for name, parameter in trainer.model.named_parameters():
        if "quantizer" not in name:
            found[parameter.requires_grad].add(parameter.dtype)
    assert found == {True: {torch.float32}, False: {torch.bfloat16}}
    trainer.train()
    (loss,) = losses(trainer)
    assert loss == pytest.approx(*losses(trained_in_float32(narrow, tmp_path)), rel=0.02)
    trainer.save_model(tmp_path / "trained")
    saved = VargptForConditionalGeneration.from_pretrained(tmp_path / "trained", dtype="float32")
    assert torch.equal(saved.model.visual_decoder.head.weight, trainer.model.model.visual_decoder.head.weight)


def trained_in_float32(narrow, tmp_path):
    trainer = trainer_of(tmp_path / "wide", narrow, stage="stage3", bf16=False) if (tmp_path / "wide").mkdir() is None else None
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    trainer.train()
    return trainer


def test_auto_is_float32_where_the_device_has_no_units(narrow, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "is_fast", lambda device, dtype: dtype == torch.float32)
    trainer = trainer_of(tmp_path, narrow, stage="stage3", dtype="auto")
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_adapters_on_a_quantized_language_model(bits, base, tmp_path):
    settings = {"use_peft": True, "lora_preset": "all", bits: True, "learning_rate": 1e-2, "max_steps": 4, "logging_steps": 1}
    trainer = trainer_of(tmp_path, base, stage="stage3", train_sampling_strategy="sequential", per_device_train_batch_size=8, **settings)
    model = trainer.model.base_model.model
    kinds = {type(layer).__module__.split(".")[0] for layer in (model.model.vlm.language_model.layers[0].mlp.up_proj.base_layer,)}
    assert kinds == {"bitsandbytes"} and type(model.model.visual_decoder.layers[0].mlp.fc1.base_layer) is torch.nn.Linear
    trainer.train()
    found = losses(trainer)
    assert found[-1] < found[0]
    trainer.save_model(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]


class ZeRO3:
    """Settings of DeepSpeed, as Transformers keeps them."""

    def is_zero3(self):
        return True


def test_models_are_loaded_whole_where_deepspeed_would_shard_them():
    """test_deepspeed.py trains so, where DeepSpeed is installed."""
    settings = ZeRO3()
    for given in (
        {"deepspeed": "zero3.json", "hf_deepspeed_config": settings, "deepspeed_plugin": object()},
        {"deepspeed": None, "deepspeed_plugin": SimpleNamespace(dschf=settings)},
    ):
        set_hf_deepspeed_config(settings)
        with pytest.raises(OSError), loaded_whole(SimpleNamespace(**given)):
            assert not is_deepspeed_zero3_enabled()
            raise OSError
        assert is_deepspeed_zero3_enabled()
    unset_hf_deepspeed_config()
    with loaded_whole(SimpleNamespace(deepspeed_plugin=None)):
        assert not is_deepspeed_zero3_enabled()
