"""Edits of scenes of shapes: a scene before, an instruction, the scene after. Recolor, remove, add and move; all else stays as it is."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

from .shapes import ALL_PAIRS, PLACES, SIZES, Pair, Scene, SceneObject, choice, sample_scene


@dataclass(frozen=True)
class SceneEdit:
    """An edit: its kind, what the user says, and both scenes. No two objects of a scene have the same color and shape."""

    kind: str
    instruction: str
    before: Scene
    after: Scene


def sample_edit(rng: np.random.Generator, kind: str | None = None, pairs: Collection[Pair] = ALL_PAIRS) -> SceneEdit:
    """A random edit.

    Args:
        rng: where all chance comes from.
        kind: one of `EDIT_KINDS`; any of them by default.
        pairs: the pairs of color and shape that objects may have, before and after.

    Raises:
        ValueError: an unknown kind.
    """
    kind = choice(rng, list(EDIT_KINDS)) if kind is None else kind
    if kind not in EDIT_KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(EDIT_KINDS)}.")
    number = int(rng.integers(2, 4))
    scene = sample_scene(rng, "list", pairs=pairs, num_objects=number)
    before = replace(scene, objects=scene.objects[: number - 1]) if kind == "add" else scene  # at most three objects after it, too
    after, instruction = EDIT_KINDS[kind](rng, before.objects, sorted(pairs))
    return SceneEdit(kind, instruction, before, replace(before, objects=after))


Edited = tuple[tuple[SceneObject, ...], str]


def _recolor(rng: np.random.Generator, objects: tuple[SceneObject, ...], pairs: list[Pair]) -> Edited:
    index, chosen = _one_of(rng, objects)
    colour = choice(rng, [colour for colour, shape in _absent(objects, pairs) if shape == chosen.shape])
    return _with(objects, index, replace(chosen, colour=colour)), f"make the {chosen.colour} {chosen.shape} {colour}"


def _remove(rng: np.random.Generator, objects: tuple[SceneObject, ...], pairs: list[Pair]) -> Edited:
    index, chosen = _one_of(rng, objects)
    return _with(objects, index), f"remove the {chosen.colour} {chosen.shape}"


def _add(rng: np.random.Generator, objects: tuple[SceneObject, ...], pairs: list[Pair]) -> Edited:
    colour, shape = choice(rng, _absent(objects, pairs))
    added = SceneObject(shape, colour, choice(rng, list(SIZES)), _free_place(rng, objects))
    return (*objects, added), f"add a {added.size} {colour} {shape} {PLACES[added.place]}"


def _move(rng: np.random.Generator, objects: tuple[SceneObject, ...], pairs: list[Pair]) -> Edited:
    index, chosen = _one_of(rng, objects)
    moved = replace(chosen, place=_free_place(rng, objects))
    return _with(objects, index, moved), f"put the {chosen.colour} {chosen.shape} {PLACES[moved.place]}"


EDIT_KINDS: dict[str, Callable[[np.random.Generator, tuple[SceneObject, ...], list[Pair]], Edited]] = {
    "recolor": _recolor,
    "remove": _remove,
    "add": _add,
    "move": _move,
}


def _one_of(rng: np.random.Generator, objects: tuple[SceneObject, ...]) -> tuple[int, SceneObject]:
    index = int(rng.integers(len(objects)))
    return index, objects[index]


def _with(objects: tuple[SceneObject, ...], index: int, *instead: SceneObject) -> tuple[SceneObject, ...]:
    return (*objects[:index], *instead, *objects[index + 1 :])


def _absent(objects: tuple[SceneObject, ...], pairs: list[Pair]) -> list[Pair]:
    shown = {item.pair for item in objects}
    return [pair for pair in pairs if pair not in shown]


def _free_place(rng: np.random.Generator, objects: tuple[SceneObject, ...]) -> tuple[int, int]:
    return choice(rng, [place for place in PLACES if place not in {item.place for item in objects}])


__all__ = ["EDIT_KINDS", "SceneEdit", "sample_edit"]
