"""examples/edit_shapes.py: rows that read an image and draw it edited, training on them, and what the judge finds."""

import json
from pathlib import Path

import numpy as np
import pytest
import ready_processes
import torch
from PIL import Image

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.shapes import HELD_OUT_PAIRS
from vargpt_hf.training.collator import VargptDataCollator

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import edit_shapes

    return edit_shapes


def test_rows_are_edits_as_the_judge_sees_them(example):
    rows = list(example.edit_rows(200, seed=3))
    found = example.figures(rows, [row["output_images"][0] for row in rows])
    assert found.pop("edits") == 200 and set(found.values()) == {1.0}
    nothing = example.figures(rows, [row["images"][0] for row in rows])
    assert (nothing["done"], nothing["untouched objects kept"], nothing["all else kept"]) == (0.0, 1.0, 1.0)
    first = {row["messages"][0]["content"][0]["type"] for row in rows}
    assert first == {"image", "text"}  # either may come first
    said = " ".join(map(example.instruction_of, rows))
    assert not any(f"{color} {shape}" in said for color, shape in HELD_OUT_PAIRS)
    assert [example.instruction_of(row) for row in example.edit_rows(5, seed=3, split="test")] != [
        example.instruction_of(row) for row in rows[:5]
    ]


def test_the_mask_is_of_the_squares_that_change(example):
    before = np.zeros((48, 48, 3), np.uint8)
    after = before.copy()
    after[20, 40] = 255
    mask = example.changed(*map(Image.fromarray, (before, after)))
    assert mask.sum() == 16 * 16 and mask[16:32, 32:48].all()


def test_rows_train(example):
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32")
    inputs = VargptDataCollator(VargptProcessor.from_pretrained(TINY_FOLDER))(list(example.edit_rows(2)))
    assert len(inputs["pixel_values"]) == len(inputs["output_pixel_values"]) == 2
    with torch.no_grad():
        assert model(**inputs).output_image_loss.isfinite()


def test_a_mask_keeps_the_rest_of_an_untrained_model_s_drawing(example):
    rows = list(example.edit_rows(40, split="test"))
    free, masked = (example.figures(rows, example.edit(TINY_FOLDER, rows, with_mask)) for with_mask in (False, True))
    assert masked["untouched objects kept"] > 0.9 > 0.5 > free["untouched objects kept"]


@pytest.mark.slow
def test_the_whole_way(tmp_path):
    options = ["--scale", "0.0001", "--evaluate", "4", "--image", tmp_path / "edited.png"]
    run = ready_processes.run([EXAMPLES / "edit_shapes.py", tmp_path / "runs", *options], vargpt_too=True)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "runs" / "figures.json").read_text())
    assert list(found) == ["as rendered", "drawn freely", "with a mask"] and found["as rendered"]["done"] == 1.0
    assert (tmp_path / "runs" / "edit" / "model.safetensors").exists() and (tmp_path / "edited.png").exists()
