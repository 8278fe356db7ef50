"""The documented command that trains vargpt-tiny, with next to no data: every step runs and leaves what the next one needs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor

EXAMPLES = Path(__file__).parents[2] / "examples"
STAGES = ("pretrain", "stage1", "stage2", "stage3")


@pytest.mark.slow
def test_every_step_runs_and_a_stopped_run_goes_on(tmp_path):
    def train():
        command = [sys.executable, EXAMPLES / "train_tiny.py", tmp_path, "--scale", "0", "--evaluate", "4"]
        return subprocess.run(command, capture_output=True, text=True)

    result = train()
    assert result.returncode == 0, result.stderr[-3000:]
    assert "image tokenizer: {'psnr':" in result.stdout and "retrieval accuracy among 100:" in result.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"seen: shape and colour", "unseen: shape and colour", "written: digit", "answers"} <= set(figures)
    card = ModelCard.load(tmp_path / "vargpt-tiny" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.datasets is None
    assert f"| answers | {figures['answers']:.1%} |" in card.text and "handwritten digits" in card.text
    assert Image.open(tmp_path / "vargpt-tiny" / "drawn.png").size == (48, 48)
    model = VargptForConditionalGeneration.from_pretrained(tmp_path / "vargpt-tiny")
    VargptProcessor.from_pretrained(tmp_path / "vargpt-tiny")
    assert model.generation_config.output_image_unconditional_ids
    finished = {stage: (tmp_path / stage / "model.safetensors").stat().st_mtime_ns for stage in STAGES[:3]}

    shutil.rmtree(tmp_path / "stage3")
    assert train().returncode == 0
    assert {stage: (tmp_path / stage / "model.safetensors").stat().st_mtime_ns for stage in STAGES[:3]} == finished
    assert (tmp_path / "stage3" / "model.safetensors").exists()
