"""Edits of shapes and their judge."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vargpt_hf.tiny import edit_judge
from vargpt_hf.tiny.edit_judge import judge_edit
from vargpt_hf.tiny.edits import EDIT_KINDS, sample_edit
from vargpt_hf.tiny.shapes import ALL_PAIRS, HELD_OUT_PAIRS, PLACES, Scene, SceneObject, render

SCENE = Scene((SceneObject("circle", "red", "large", (0, 0)), SceneObject("square", "blue", "small", (2, 1))))


def verdict(after: Scene, instruction: str, before: Scene = SCENE):
    return judge_edit(render(before), render(after), instruction)


def with_objects(*objects: SceneObject) -> Scene:
    return replace(SCENE, objects=objects)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_what_the_generator_makes_is_found_done(kind):
    rng = np.random.default_rng(0)
    for _ in range(60):
        edit = sample_edit(rng, kind)
        found = judge_edit(render(edit.before), render(edit.after), edit.instruction)
        assert found.kind == kind and found.done and found.rest_is_kept, (edit, found)
        nothing = judge_edit(render(edit.before), render(edit.before), edit.instruction)
        assert not nothing.done and nothing.rest_is_kept, (edit, nothing)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_only_what_is_named_changes(kind):
    rng = np.random.default_rng(1)
    for _ in range(60):
        edit = sample_edit(rng, kind)
        before, after = set(edit.before.objects), set(edit.after.objects)
        gone, new = len(before - after), len(after - before)
        assert (gone, new) == {"recolor": (1, 1), "remove": (1, 0), "add": (0, 1), "move": (1, 1)}[kind]
        for scene in (edit.before, edit.after):
            assert len({item.pair for item in scene.objects}) == len({item.place for item in scene.objects}) == len(scene.objects)
        assert edit.before.background == edit.after.background


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_pairs_of_color_and_shape_can_be_limited(kind):
    rng, shown = np.random.default_rng(2), set()
    for _ in range(60):
        edit = sample_edit(rng, kind, ALL_PAIRS - HELD_OUT_PAIRS)
        shown |= {item.pair for scene in (edit.before, edit.after) for item in scene.objects}
    assert shown <= ALL_PAIRS - HELD_OUT_PAIRS and len(shown) > 15


def test_a_seed_names_the_edits():
    first, again = ([sample_edit(np.random.default_rng(5)) for _ in range(2)] for _ in range(2))
    assert first == again
    with pytest.raises(ValueError, match="kind is 'paint'; it must be one of recolor, remove, add, move"):
        sample_edit(np.random.default_rng(0), "paint")


def test_wrong_edits_are_found_out():
    circle, square = SCENE.objects
    green = replace(circle, colour="green")
    assert verdict(with_objects(green, square), "make the red circle green").done
    assert not verdict(with_objects(replace(circle, colour="yellow"), square), "make the red circle green").done
    assert not verdict(with_objects(replace(green, place=(1, 1)), square), "make the red circle green").done  # it moved, too
    assert not verdict(with_objects(replace(green, shape="cross"), square), "make the red circle green").done
    assert not verdict(with_objects(circle, replace(green, place=(2, 2)), square), "make the red circle green").done
    assert not verdict(with_objects(replace(circle, place=(0, 2)), square), "put the red circle at the bottom right").done
    assert not verdict(with_objects(circle, replace(circle, place=(2, 2)), square), "put the red circle at the bottom right").done  # a second
    cross = SceneObject("cross", "green", "large", (1, 1))
    assert verdict(with_objects(circle, square, cross), "add a large green cross in the middle").done
    assert not verdict(with_objects(circle, square, replace(cross, place=(1, 2))), "add a large green cross in the middle").done
    small = replace(cross, size="small")
    assert not verdict(with_objects(circle, square, small), "add a large green cross in the middle").done
    assert verdict(with_objects(circle, square, small), "add a small green cross in the middle").done
    assert verdict(with_objects(circle, square, small), "add a green cross in the middle").done
    moved = replace(circle, place=(2, 2))
    assert verdict(with_objects(moved, square), "put the red circle at the bottom right").done
    assert not verdict(with_objects(replace(moved, size="small"), square), "put the red circle at the bottom right").done  # it shrank


def test_a_changed_rest_is_found_out():
    circle, square = SCENE.objects
    instruction = "remove the red circle"
    whole = verdict(with_objects(square), instruction)
    assert (whole.done, whole.untouched, whole.kept, whole.surplus, whole.rest_is_kept) == (True, 1, 1, 0, True)
    for change in ({"colour": "green"}, {"shape": "circle"}, {"size": "large"}, {"place": (1, 1)}):
        other = verdict(with_objects(replace(square, **change)), instruction)
        assert other.done and (other.kept, other.surplus) == (0, 1) and not other.rest_is_kept, change
    assert not verdict(with_objects(), instruction).rest_is_kept
    assert not verdict(with_objects(square, SceneObject("cross", "green", "large", (1, 2))), instruction).rest_is_kept
    assert not verdict(replace(with_objects(square), background="black"), instruction).rest_is_kept


def test_instructions_that_cannot_be_judged():
    with pytest.raises(ValueError, match="'paint it' has none of the forms of an edit"):
        verdict(SCENE, "paint it")
    with pytest.raises(ValueError, match="names an object that the image before shows 0 times"):
        verdict(SCENE, "remove the green circle")


def test_the_judge_shares_no_code_with_the_generator():
    for name in ("edit_judge", "judges"):
        tree = ast.parse(Path(edit_judge.__file__).with_name(f"{name}.py").read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
        assert imported <= {"judges"}
    assert all(edit_judge._cell_of(words) == place for place, words in PLACES.items())
