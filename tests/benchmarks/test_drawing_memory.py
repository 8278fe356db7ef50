"""The tables of memory say what the code says, and the recipes fit the GPU that they are worked out for."""

from pathlib import Path

import pytest
import yaml

from benchmarks import drawing_memory
from benchmarks.drawing_memory import FORMATS, GB, PAGES, bytes_of, model_of, render, small_config
from vargpt_hf.training.outlook import BATCHES, FREE, outlooks

RECIPES = Path(__file__).parents[2] / "examples" / "any_vlm"


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_what_the_code_writes(page):
    text = (drawing_memory.DOCS / page).read_text(encoding="utf-8")
    assert f"<!-- {PAGES[page].__name__} -->" in text
    assert render(page) == text, "python benchmarks/drawing_memory.py --write"


def test_bytes_of_a_drawing():
    """Worked out by hand: LLaVA-7B's 32 layers with 32 heads of 128, VAR's 30 layers of 1920, 680 positions and 60 tokens, two rows."""
    weights, caches = bytes_of("VARGPT v1, 256×256", "bfloat16")
    assert weights == 2 * sum(p.numel() for p in model_of("VARGPT v1, 256×256").parameters())
    assert caches == 2 * 2 * 2 * (32 * 32 * 128 * 740 + 30 * 1920 * 680)
    assert [bytes_of("VARGPT v1, 256×256", name)[0] for name in FORMATS] == sorted(bytes_of("VARGPT v1, 256×256", n)[0] for n in FORMATS)[::-1]


def test_recipes_fit_the_gpu_that_they_are_worked_out_for():
    found = {one.recipe.name: one for one in outlooks(small_config())}
    for name in ("stage1", "lora", "draw"):
        rows = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["per_device_train_batch_size"]
        one = found[f"any_vlm/{name}"]
        assert one.memory(rows) <= (1 - FREE) * 24 * GB and rows in BATCHES
        assert one.fitting(24 * GB)[0] == rows  # and no more
    everything, lora = found["everything"], found["any_vlm/lora"]
    assert everything.fitting(24 * GB) is None and everything.memory(1) > everything.budgets[0].trained_parameters * 16
    assert lora.memory(1, "load_in_4bit") < lora.memory(1, "load_in_8bit") < lora.memory(1)
    assert lora.fitting(9 * GB)[1] is not None
