"""The scripts beside the recipes for any vision-language model run, at a size of no use."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from vargpt_hf.conversion.any_vlm import compose_any
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.training.script import make_trainer, parse

EXAMPLES = Path(__file__).parents[2] / "examples" / "any_vlm"


@pytest.mark.slow
def test_the_sweep_of_loss_weights_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["loss_weights.py", str(tmp_path), "--steps", "1"])
    script = runpy.run_path(str(EXAMPLES / "loss_weights.py"))
    script["main"].__globals__["WEIGHTS"] = (10.0,)
    script["main"]()
    found = json.loads((tmp_path / "losses.json").read_text())
    assert set(found) == {"10.0"} and all(loss > 0 for pair in found.values() for loss in pair)
    assert (tmp_path / "losses.png").stat().st_size and capsys.readouterr().out.count("loss of answers") == 1


@pytest.mark.slow
def test_the_parts_of_a_family_from_scratch(tmp_path, capsys):
    """Its commands run as in docs/any_vlm.md; here what stands between them, and the judge, who finds that a trained model draws."""
    script = runpy.run_path(str(EXAMPLES / "family_from_scratch.py"))
    script["write_reader"](tmp_path / "reader")
    compose_any(tmp_path / "start", llm=tmp_path / "reader", image_tokenizer="vargpt-tiny", decoder_size="4,192,4")
    script["write_rows"](tmp_path / "rows", 8)
    stage = {"model_name_or_path": tmp_path / "start", "train_data": tmp_path / "rows", "output_dir": tmp_path / "out"}
    (tmp_path / "stage.yaml").write_text(json.dumps({**script["STAGE"], **{name: str(path) for name, path in stage.items()}}))
    trainer, _ = make_trainer(*parse(tmp_path / "stage.yaml", ["--max_steps", "1"]))
    assert len(trainer.train_dataset) == 8 and trainer.model.config.text_config.model_type == "qwen3"
    shutil.copytree(TINY_FOLDER, tmp_path / "trained")
    script["judge"](tmp_path / "trained", 4)
    assert "this model: shape and colour 100.0%" in capsys.readouterr().out
    assert json.loads((tmp_path / "trained" / "figures.json").read_text())["vargpt-tiny"]["shape and colour"] == 1.0
    assert (tmp_path / "trained" / "drawn_3.png").stat().st_size
