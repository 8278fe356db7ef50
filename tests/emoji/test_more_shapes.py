"""Scenes of more colors and shapes: what they show is what their words say, and never what is kept out."""

import numpy as np
import pytest

from vargpt_hf.emoji.more_shapes import ALL_COLORS, ALL_FORMS, PAIRS, varied_scene
from vargpt_hf.emoji.shape_rows import render
from vargpt_hf.tiny.judges import detect
from vargpt_hf.tiny.shapes import ALL_PAIRS, BACKGROUNDS, COLOURS, HELD_OUT_PAIRS, SHAPES, Scene, SceneObject


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [varied_scene(rng) for _ in range(2500)]


def pixels(shape: str, colour: str, background: str = "white") -> np.ndarray:
    return np.asarray(render(Scene((SceneObject(shape, colour, "large", (1, 1)),), background)), dtype=int)


def test_all_pairs_but_those_kept_out(scenes):
    shown = {item.pair for scene, _ in scenes for item in scene.objects}
    assert shown == PAIRS and not shown & HELD_OUT_PAIRS
    assert PAIRS > ALL_PAIRS - HELD_OUT_PAIRS


def test_nothing_passes_for_what_is_kept_out(scenes):
    """Not only by name: the judge of shapes, who knows six colors and four shapes, takes a gold star for a yellow cross."""
    found = {(one.colour, one.shape) for scene, _ in scenes for one in detect(render(scene))}
    assert not found & HELD_OUT_PAIRS and len(found) > 15
    star = Scene((SceneObject("star", "gold", "large", (1, 1)),))
    assert [(one.colour, one.shape) for one in detect(render(star))] == [("yellow", "cross")]


def test_words_name_what_is_shown(scenes):
    for scene, words in scenes[:500]:
        assert all(item.colour in words and item.shape in words for item in scene.objects), words


@pytest.mark.parametrize("shape", sorted(set(ALL_FORMS) - set(SHAPES)))
def test_every_added_shape_is_drawn_in_its_box(shape):
    drawn = pixels(shape, "navy")
    rows, columns = np.nonzero((drawn != 255).any(-1))
    assert 22 <= rows.min() and rows.max() <= 41 and 22 <= columns.min() and columns.max() <= 41  # 18.7 pixels around the middle
    assert np.ptp(rows) >= 15 and np.ptp(columns) >= 11
    others = [pixels(other, "navy") for other in ALL_FORMS if other != shape]
    assert min(abs(drawn - other).mean() for other in others) > 1  # of 255, over a picture of which the object is a tenth


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", ["ring", "crescent"])
def test_holes_show_the_background(shape, background):
    drawn = pixels(shape, "lime", background)
    middle = drawn[32, 32 if shape == "ring" else 36]
    np.testing.assert_array_equal(middle, BACKGROUNDS[background])


def test_colors_can_be_told_apart():
    values = np.array(list(ALL_COLORS.values()))
    distances = np.abs(values[:, None] - values[None]).sum(-1) + 1000 * np.eye(len(values), dtype=int)
    assert distances.min() >= 40 and COLOURS.items() <= ALL_COLORS.items()
