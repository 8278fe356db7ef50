"""Tools that people use, each with a VARGPT as it is; docs/works_with.md has a line for each."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image, List
from micro import ROWS, image, write_config
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trl import SFTConfig, SFTTrainer
from trl.scripts.sft import main as trl_sft
from trl.scripts.sft import make_parser
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.peft import lora_config
from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.script import train

ROOT = Path(__file__).parents[2]
TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "noise"}]},
]


def reading_rows(number: int = 2) -> Dataset:
    """Rows as TRL's vision datasets have them: chats and the images that these read."""
    rows = [{"messages": TURNS, "images": [image(index)]} for index in range(number)]
    return Dataset.from_list(rows).cast_column("images", List(Image()))


def settings(folder: Path, **options) -> dict:
    plain = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False, "max_length": None, "logging_steps": 1}
    return {"output_dir": str(folder), **plain, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, **options}


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trl_s_trainer_and_vision_collator_on_rows_that_read(base, model, processor, tmp_path):
    """TRL's own trainer, untouched, with the collator that it makes for processors; its loss is the model's own."""
    args = SFTConfig(**settings(tmp_path, learning_rate=1e-3, gradient_checkpointing=False, train_sampling_strategy="sequential"))
    trainer = SFTTrainer(model, args=args, train_dataset=reading_rows(), processing_class=processor)
    assert isinstance(trainer.data_collator, DataCollatorForVisionLanguageModeling)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        expected = VargptForConditionalGeneration.from_pretrained(base)(**batch).text_loss.item()
    trainer.train()
    first, second = losses(trainer)
    assert first == pytest.approx(expected, rel=1e-3) and second < first


def test_trl_s_command_line_and_its_yaml(base, tmp_path):
    """`trl sft --config`, as `trl` runs it: text and images that are read; images to draw are trained by `vargpt train`."""
    reading_rows(4).to_parquet(tmp_path / "data" / "train.parquet")
    config = {"model_name_or_path": str(base), "dataset_name": str(tmp_path / "data"), **settings(tmp_path / "out", learning_rate=1e-3)}
    (tmp_path / "sft.yaml").write_text(json.dumps({**config, "use_peft": True, "lora_target_modules": ["q_proj", "v_proj"]}))
    trl_sft(*make_parser().parse_args_and_config(["--config", str(tmp_path / "sft.yaml")], fail_with_unknown_args=False))
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size


def test_adapters_are_swapped_in_place(base, processor, tmp_path):
    """PEFT's hotswap: the weights of one adapter in the place of another's, with no module made anew, as servers do it."""
    batch = VargptDataCollator(processor)([ROWS[2], ROWS[4]])
    for seed in (1, 2):
        torch.manual_seed(seed)
        adapted = get_peft_model(VargptForConditionalGeneration.from_pretrained(base), lora_config("draw", r=4, modules_to_save=None))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.3)
            adapted.save_pretrained(tmp_path / str(seed))
            expected = adapted.eval()(**batch).output_image_logits
    held = PeftModel.from_pretrained(VargptForConditionalGeneration.from_pretrained(base), tmp_path / "1")
    modules = list(map(id, held.modules()))
    with torch.no_grad():
        assert not torch.allclose(held.eval()(**batch).output_image_logits, expected)
        hotswap_adapter(held, str(tmp_path / "2"), adapter_name="default")
        torch.testing.assert_close(held(**batch).output_image_logits, expected)
    assert list(map(id, held.modules())) == modules


def test_tensorboard(base, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    train(write_config(tmp_path, base, report_to=["tensorboard"], max_steps=2, logging_steps=1, save_strategy="no", sample_prompts=[]))
    (file,) = (tmp_path / "logs").rglob("events.*")
    events = EventAccumulator(str(file.parent)).Reload()
    for name in ("train/text_loss", "train/output_image_loss", "train/image_accuracy_2x2"):
        assert [event.step for event in events.Scalars(name)] == [1, 2], name


def test_trackio(base, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="Trackio is not a dependency: pip install trackio")
    keys = {"report_to": ["trackio"], "project": "micro", "run_name": "one", "max_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    train(write_config(tmp_path, base, sample_prompts=[], **keys))
    from trackio.sqlite_storage import SQLiteStorage

    logged = [entry for entry in SQLiteStorage.get_logs("micro", "one") if "train/text_loss" in entry]
    assert len(logged) == 2 and all(entry["train/output_image_loss"] > 0 for entry in logged)


def test_the_page_names_tests_that_there_are():
    page = (ROOT / "docs" / "works_with.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ") and "`test_" in line]
    everywhere = {name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.M)}
    named = set(re.findall(r"`(test_\w+)`", page))
    here = set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), flags=re.M)) - {"test_the_page_names_tests_that_there_are"}
    assert here <= named <= everywhere and len(lines) >= 10
