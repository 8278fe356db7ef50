"""The documented command that trains vargpt-tiny, with next to no data: every step runs and leaves what the next one needs."""

import json
import signal
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from stopped_commands import run_until

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(folder: Path, until: str | None = None) -> tuple[int, str]:
    """The command's exit code and what it said; stopped, with all that it has started, when a folder of its own is there."""
    command = [EXAMPLES / "train_tiny.py", folder, "--scale", "0", "--evaluate", "4"]
    return run_until(command, folder.parent / "log.txt", until and folder / until, signal.SIGTERM)


def made(folder: Path) -> dict[str, int]:
    """When the weights of every finished step were written."""
    return {file.parent.name: file.stat().st_mtime_ns for file in sorted(folder.glob("*/model.safetensors"))}


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """The folder of a run that was stopped in stage 1, what it had finished by then, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    _, said = run(folder, until="stage1")
    return folder, made(folder), said


def goes_on(folder: Path, until: str) -> tuple[Path, dict[str, int], str]:
    """The same run, started again and stopped once more: its folder, what it had finished by then, and what it said."""
    _, said = run(folder, until)
    return folder, made(folder), said


@pytest.fixture(scope="module")
def stopped_twice(stopped_once):
    return goes_on(stopped_once[0], until="stage2")


@pytest.fixture(scope="module")
def stopped_thrice(stopped_twice):
    return goes_on(stopped_twice[0], until="stage3")


@pytest.fixture(scope="module")
def stopped_at_its_end(stopped_thrice):
    """Before its model is evaluated."""
    return goes_on(stopped_thrice[0], until="vargpt-tiny/model.safetensors")


@pytest.mark.slow
def test_the_parts_are_trained(stopped_once):
    folder, finished, said = stopped_once
    assert {"vq", "clip", "base", "pretrain"} <= set(finished) and "stage2" not in finished, said[-3000:]
    assert "image tokenizer: {'psnr':" in said and "retrieval accuracy among 100:" in said
    for name in ("base", "pretrain"):
        VargptForConditionalGeneration.from_pretrained(folder / name)
        VargptProcessor.from_pretrained(folder / name)


def follows(before: tuple[Path, dict[str, int], str], after: tuple[Path, dict[str, int], str], stage: str) -> None:
    """A run that was started again has finished one more stage, and done none again."""
    (_, earlier, _), (_, finished, said) = before, after
    assert {name: finished[name] for name in earlier} == earlier and stage in finished, said[-3000:]
    assert "image tokenizer:" not in said


@pytest.mark.slow
def test_a_stopped_run_goes_on(stopped_once, stopped_twice):
    follows(stopped_once, stopped_twice, "stage1")


@pytest.mark.slow
def test_the_next_stage_follows(stopped_twice, stopped_thrice):
    follows(stopped_twice, stopped_thrice, "stage2")


@pytest.mark.slow
def test_the_last_stage_follows(stopped_thrice, stopped_at_its_end):
    follows(stopped_thrice, stopped_at_its_end, "stage3")


@pytest.mark.slow
def test_a_run_that_was_stopped_comes_to_its_end(stopped_at_its_end):
    folder, before, _ = stopped_at_its_end
    code, said = run(folder)
    assert code == 0, said[-3000:]
    now = made(folder)
    assert all(now[name] == before[name] for name in before if name != "vargpt-tiny") and "vargpt-tiny" in now
    figures = json.loads((folder / "report" / "report.json").read_text())["metrics"]
    assert {"seen: shape and colour", "unseen: shape and colour", "written: digit", "answers"} <= set(figures)
    card = ModelCard.load(folder / "vargpt-tiny" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.datasets is None
    assert f"| answers | {figures['answers']['value']:.1%} |" in card.text and "handwritten digits" in card.text
    assert Image.open(folder / "vargpt-tiny" / "drawn.png").size == (48, 48)
    model = VargptForConditionalGeneration.from_pretrained(folder / "vargpt-tiny")
    VargptProcessor.from_pretrained(folder / "vargpt-tiny")
    assert model.generation_config.output_image_unconditional_ids
