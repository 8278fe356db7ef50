"""A folder that does not hold the model it claims is refused, by name and shape of what is wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vargpt_hf import VargptConfig, VargptForConditionalGeneration, VargptModel
from vargpt_hf.testing import tiny_model

HEAD = "model.visual_decoder.head.weight"


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_missing_tensors_are_named(folder):
    change_tensors(folder, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(ValueError, match=f"missing: {HEAD}"):
        VargptForConditionalGeneration.from_pretrained(folder)
    _, info = VargptForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == {HEAD}


def test_extra_tensors_are_named(folder):
    change_tensors(folder, lambda tensors: tensors.update({"model.visual_decoder.more": torch.zeros(2)}))
    with pytest.raises(ValueError, match="unexpected: model.visual_decoder.more"):
        VargptForConditionalGeneration.from_pretrained(folder)


def test_both_shapes_are_named(folder):
    wanted = tuple(load_file(folder / "model.safetensors")[HEAD].shape)
    change_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[HEAD][:-1].clone()}))
    with pytest.raises(ValueError) as refusal:
        VargptForConditionalGeneration.from_pretrained(folder)
    assert f"{HEAD} ({(wanted[0] - 1, wanted[1])} in the file, {wanted} by the configuration)" in str(refusal.value)
    model = VargptForConditionalGeneration.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert tuple(model.get_parameter(HEAD).shape) == wanted


def test_a_contradicting_config_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["visual_decoder_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="missing: model.visual_decoder.layers"):
        VargptForConditionalGeneration.from_pretrained(folder)


def test_another_model_type_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    for load in (VargptConfig.from_pretrained, VargptForConditionalGeneration.from_pretrained):
        with pytest.raises(ValueError, match="'llava' model, not of a 'vargpt' one"):
            load(folder)


def test_pickles_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        VargptForConditionalGeneration.from_pretrained(folder)


def test_the_inner_model_loads_from_a_whole_checkpoint(folder):
    whole = VargptForConditionalGeneration.from_pretrained(folder)
    inner = VargptModel.from_pretrained(folder)
    assert all(torch.equal(tensor, inner.state_dict()[name]) for name, tensor in whole.model.state_dict().items())
