"""examples/compare_curves.py: what runs logged, drawn together, and how far it lies apart."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import compare_curves

    return compare_curves


def run_folder(folder: Path, losses: dict[int, float]) -> Path:
    """An output folder with one checkpoint."""
    checkpoint = folder / f"checkpoint-{max(losses)}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.zeros(1)}, checkpoint / "model.safetensors")
    history = [{"step": step, "epoch": 0.1, "text_loss": loss, "output_image_loss": 2 * loss} for step, loss in losses.items()]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": [*history, {"step": 9, "train_loss": 1.0}]}))
    return folder


def test_runs_are_compared_at_steps_that_all_logged(example, tmp_path, monkeypatch, capsys):
    folders = [
        run_folder(tmp_path / "whole", {10: 4.0, 20: 3.0, 30: 2.0, 40: 1.0}),
        run_folder(tmp_path / "part", {10: 4.5, 20: 3.25, 25: 9.0}),
    ]
    monkeypatch.setattr("sys.argv", ["compare_curves.py", str(tmp_path / "curves.png"), *map(str, folders)])
    example.main()
    text, image = capsys.readouterr().out.splitlines()
    assert text == "text_loss: 3, 3.25 at step 20; 0.375 apart in the mean of 2 logs, 0.5 at the most"
    assert image == "output_image_loss: 6, 6.5 at step 20; 0.75 apart in the mean of 2 logs, 1 at the most"
    assert Image.open(tmp_path / "curves.png").size == (1200, 420)


def test_what_cannot_be_compared_is_named(example, tmp_path, monkeypatch):
    folder = run_folder(tmp_path / "run", {10: 4.0, 20: 3.0})
    for arguments, error, message in (
        ([tmp_path], FileNotFoundError, "no complete checkpoint in"),
        ([folder, "--names", "psnr"], ValueError, "Not all runs logged psnr; all have text_loss, output_image_loss"),
    ):
        monkeypatch.setattr("sys.argv", ["compare_curves.py", str(tmp_path / "curves.png"), *map(str, arguments)])
        with pytest.raises(error, match=message):
            example.main()
    assert example.describe([{1: 1.0}, {2: 1.0}]) == "no step was logged by all runs"
