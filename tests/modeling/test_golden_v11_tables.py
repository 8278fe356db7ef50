"""VARGPT v1.1's tables: scale schedules of every budget and aspect ratio, rotary positions at true size, filters of two classes, sizes."""

import math

import pytest
import torch
from golden_v11_helpers import assert_close_to_v11, golden_v11, golden_v11_json

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.modeling.image_sampling_vargpt import filters
from vargpt_hf.modeling.infinity_decoder_vargpt import rotary_table
from vargpt_hf.modeling.scales_vargpt import ScaleSchedule, choose_schedules

BUDGETS = ("0.06M", "0.25M", "0.60M", "1M")
SCALES = golden_v11_json("scales")
FILTERS = {0: (0, 0.0), 1: (900, 0.97), 2: (2, 0.5), 3: (1, 0.0), 4: (0, 0.6)}  # top-k and top-p of each golden distribution


@pytest.mark.parametrize("budget", BUDGETS)
def test_schedules_of_a_budget_are_the_released_ones(budget):
    config = VargptConfig.v1_1(budget)
    ours = {tuple(schedule.grids): schedule.num_positions for schedule in config.schedules}
    released = {tuple(map(tuple, of_ratio[budget]["h_w"])): of_ratio[budget]["L"] for of_ratio in SCALES.values()}
    assert len(SCALES) == 15 and ours == released
    assert config.schedules[0].final_grid == tuple(SCALES["1.0"][budget]["h_w"][-1])  # squares by default
    for ratio, of_ratio in SCALES.items():  # and a ratio finds its own, also by a size in pixels
        (found,) = choose_schedules(config.schedules, 1, aspect_ratio=float(ratio))
        assert config.schedules[found].grids == tuple(map(tuple, of_ratio[budget]["h_w"]))
        height, width = (16 * side for side in of_ratio[budget]["h_w"][-1])
        assert choose_schedules(config.schedules, 1, size=(height, width), unit=16) == [found]


@pytest.mark.parametrize("name", ["0.571.0.25M", "1.0.0.06M", "1.0.0.25M", "1.5.0.06M", "1.5.0.25M"])
def test_rotary_positions_at_true_size(name):
    """A position turns by the row and the column of the reference grid that the released system gives it."""
    ratio, budget = name.rsplit(".0.", 1)
    schedule = ScaleSchedule.of(SCALES[ratio]["0." + budget]["h_w"])
    cosines, sines = rotary_table(schedule, tuple(SCALES[ratio]["1M"]["h_w"][-1]), 128, 10000.0, torch.device("cpu"), torch.float32)
    rows, columns = golden_v11(f"rope/index.{name}").float().unbind(1)
    frequencies = 10000.0 ** (-torch.arange(32, dtype=torch.float32) / 32)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=1)
    torch.testing.assert_close(cosines, angles.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sines, angles.sin(), atol=1e-5, rtol=0)
    if name.endswith("0.06M"):
        torch.testing.assert_close(torch.stack([cosines, sines]), golden_v11(f"rope/cos_sin.{name}"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("index", FILTERS)
def test_filters_of_two_classes(index):
    top_k, top_p = FILTERS[index]
    logits = golden_v11("sampling/logits")[:, None, None]
    for process in filters(top_k=top_k, top_p=top_p):
        logits = process(logits, 0, None)
    assert_close_to_v11(f"sampling/probs_{index}", logits.softmax(-1).squeeze((1, 2)))


def test_every_part_has_the_released_size():
    """Part by part on the meta device; the released numbers, from the shapes of its 1706 tensors, less those that nothing reads."""
    with torch.device("meta"):
        model = VargptForConditionalGeneration(VargptConfig.v1_1())
    shapes = {name: math.prod(shape) for name, shape in golden_v11_json("keys_true_size").items()}

    def released(*prefixes: str, without: tuple[str, ...] = ()) -> int:
        return sum(size for name, size in shapes.items() if name.startswith(prefixes) and not any(part in name for part in without))

    def ours(name: str) -> int:
        return sum(parameter.numel() for parameter in model.get_submodule(name).parameters())

    assert ours("model.vlm.visual") == released("visual.")
    assert ours("model.vlm.language_model") == released("model.") and ours("lm_head") == released("lm_head.")
    assert ours("model.image_tokenizer") == released("vae_local.", without=("lfq.mask",))
    assert ours("model.projector_to_llm") == released("image_gen_projector.", without=("ln_q",))
    assert ours("model.projector_to_decoder") == released("image_gen_projector_out.", without=("ln_q",))
    dead = ("zero_k_bias", "text_proj_for_ca", "text_proj_for_sos.ca.mat_q")
    width = 2048  # of two halves of the pooling's keys and values one is read, and of `sos_embedding` one row
    assert ours("model.visual_decoder") == released("vargpt_gen.", without=dead) - width**2 + width
