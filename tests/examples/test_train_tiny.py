"""The documented command that trains vargpt-tiny, with next to no data: every step runs and leaves what the next one needs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor

EXAMPLES = Path(__file__).parents[2] / "examples"


def start(folder: Path, log: Path) -> subprocess.Popen:
    """The command, in a group of processes of its own."""
    command = [sys.executable, EXAMPLES / "train_tiny.py", folder, "--scale", "0", "--evaluate", "4"]
    with log.open("w") as file:
        return subprocess.Popen(command, start_new_session=True, stdout=file, stderr=subprocess.STDOUT)


def made(folder: Path) -> dict[str, int]:
    """When the weights of every finished step were written."""
    return {file.parent.name: file.stat().st_mtime_ns for file in sorted(folder.glob("*/model.safetensors"))}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, dict[str, int], str]:
    """The folder of a run that was stopped in its second stage, what was finished, and what it said."""
    folder, log = tmp_path_factory.mktemp("runs") / "tiny", tmp_path_factory.mktemp("logs") / "stopped.txt"
    process = start(folder, log)
    try:
        while process.poll() is None and not (folder / "data/stage2").exists():
            time.sleep(0.02)
    finally:
        finished = made(folder)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    return folder, finished, log.read_text()


@pytest.mark.slow
def test_parts_and_first_stages_are_trained(stopped):
    folder, finished, said = stopped
    assert {"vq", "clip", "base", "pretrain", "stage1"} <= set(finished), said[-3000:]
    assert "image tokenizer: {'psnr':" in said and "retrieval accuracy among 100:" in said
    for name in ("base", "pretrain", "stage1"):
        VargptForConditionalGeneration.from_pretrained(folder / name)
        VargptProcessor.from_pretrained(folder / name)


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_every_step_runs(stopped, tmp_path):
    folder, finished, _ = stopped
    code = start(folder, tmp_path / "log.txt").wait()
    said = (tmp_path / "log.txt").read_text()
    assert code == 0, said[-3000:]
    now = made(folder)
    assert {name: now[name] for name in finished} == finished and {"stage2", "stage3", "vargpt-tiny"} <= set(now)
    assert "image tokenizer:" not in said
    figures = json.loads((folder / "figures.json").read_text())
    assert {"seen: shape and colour", "unseen: shape and colour", "written: digit", "answers"} <= set(figures)
    card = ModelCard.load(folder / "vargpt-tiny" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.datasets is None
    assert f"| answers | {figures['answers']:.1%} |" in card.text and "handwritten digits" in card.text
    assert Image.open(folder / "vargpt-tiny" / "drawn.png").size == (48, 48)
    model = VargptForConditionalGeneration.from_pretrained(folder / "vargpt-tiny")
    VargptProcessor.from_pretrained(folder / "vargpt-tiny")
    assert model.generation_config.output_image_unconditional_ids
