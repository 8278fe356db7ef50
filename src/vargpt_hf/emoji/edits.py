"""Edits of pictures of one or two things: another look, a thing added, removed or replaced; all else stays as it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation.edits import edit_row
from ..tiny.shapes import choice
from .pictures import LOOKS, Pictures
from .rows import WORDINGS, Row, check_split, source_of
from .scenes import LAYOUTS, ONE, PLACES, RELATIONS, Box, paste
from .sentences import Source, said, sample_scene
from .split import held_out_pairs
from .wordings import EDITS, spoken

EDIT_KINDS = ("look", "add", "remove", "replace")
_PLACE_SAID = 0.3  # share of things to be removed or replaced that are named by their place


@dataclass(frozen=True)
class Thing:
    """A thing in a picture: its concept, its look, and where it stands."""

    code: str
    look: str
    box: Box


@dataclass(frozen=True)
class Edit:
    """An edit.

    Attributes:
        kind: one of `EDIT_KINDS`.
        instruction: what the user says.
        before, after: what the picture shows.
    """

    kind: str
    instruction: str
    before: tuple[Thing, ...]
    after: tuple[Thing, ...]

    @property
    def truth(self) -> dict[str, Any]:
        """What the judge looks for: things that must be there now, boxes that must be as they were, and boxes that must be empty."""
        new = [thing for thing in self.after if thing not in self.before]
        kept = [thing.box for thing in self.after if thing in self.before]
        empty = [thing.box for thing in self.before if thing.box not in {other.box for other in self.after}]
        cells = [{"box": thing.box, "codes": [thing.code], "look": thing.look} for thing in new]
        return {"task": "edit", "kind": self.kind, "cells": cells, "kept": kept, "empty": empty}


def render(pictures: Pictures, things: tuple[Thing, ...]) -> Image.Image:
    """The picture of things, 64×64 RGB."""
    return paste(pictures, [(thing.code, thing.look, thing.box) for thing in things])


def sample_edit(rng: np.random.Generator, source: Source, kind: str | None = None, unseen: bool = False, held_out: bool = False) -> Edit:
    """A random edit.

    Args:
        rng: where all chance comes from.
        source: things; all pairs of concept and look are those of training.
        kind: one of `EDIT_KINDS`; any of them by default.
        unseen: one thing that is new after the edit is of a pair that is kept out of training; for tests.
        held_out: in a wording that training does not see.

    Raises:
        ValueError: an unknown kind, or one in which nothing new is drawn (`unseen`).
    """
    kind = choice(rng, EDIT_KINDS) if kind is None else kind
    if kind not in EDIT_KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(EDIT_KINDS)}.")
    if kind == "remove" and unseen:
        raise ValueError('What is removed is not drawn: with `unseen`, kind must be "look", "add" or "replace".')
    instruction, before, after = _KINDS[kind](rng, source, unseen, held_out)
    return Edit(kind, spoken(rng, instruction, "."), before, after)


Edited = tuple[str, tuple[Thing, ...], tuple[Thing, ...]]


def _change_look(rng: np.random.Generator, source: Source, unseen: bool, held_out: bool) -> Edited:
    """One thing or two, all of them in another look."""
    while True:
        scene = sample_scene(rng, source, choice(rng, (ONE, ONE, *RELATIONS)), unseen)
        known = [look for look in LOOKS if look != scene.look and all((code, look) not in held_out_pairs() for code in scene.codes)]
        if known:
            break
    words = "look" if scene.layout == ONE else "looks"
    before, after = (_things(scene.codes, look, scene.boxes) for look in (choice(rng, known), scene.look))
    return EDITS[words].choose(rng, held_out).format(look=scene.look), before, after


def _add(rng: np.random.Generator, source: Source, unseen: bool, held_out: bool) -> Edited:
    """A second thing, in the look of the first."""
    (new, old), look, boxes = _two(rng, source, unseen)
    added = Thing(new, look, boxes[0])
    words = EDITS["add"].choose(rng, held_out).format(thing=said(rng, source.name(new)), place=PLACES[added.box])
    before = (Thing(old, look, boxes[1]),)
    return words, before, (*before, added)


def _remove(rng: np.random.Generator, source: Source, unseen: bool, held_out: bool) -> Edited:
    """One of two things."""
    (first, second), look, boxes = _two(rng, source, unseen)
    before = _things((first, second), look, boxes)
    return EDITS["remove"].choose(rng, held_out).format(old=_named(rng, source, before[0])), before, before[1:]


def _replace(rng: np.random.Generator, source: Source, unseen: bool, held_out: bool) -> Edited:
    """One thing, alone or beside another, by a third in its look and place."""
    while True:
        (new, old), look, boxes = _two(rng, source, unseen)
        other = choice(rng, source.seen[look])
        if other not in (new, old):
            break
    alone = rng.random() < 0.5
    boxes = LAYOUTS[ONE] if alone else boxes
    rest = () if alone else (Thing(other, look, boxes[1]),)
    before, after = Thing(old, look, boxes[0]), Thing(new, look, boxes[0])
    named = f"the {source.name(old)}" if alone else _named(rng, source, before)
    return EDITS["replace"].choose(rng, held_out).format(old=named, thing=said(rng, source.name(new))), (before, *rest), (after, *rest)


_KINDS = {"look": _change_look, "add": _add, "remove": _remove, "replace": _replace}


def _two(rng: np.random.Generator, source: Source, unseen: bool) -> tuple[tuple[str, str], str, tuple[Box, ...]]:
    """Two concepts, their look, and where they stand; of pairs of training, but for the first one with `unseen`."""
    new, look = source.pair(rng, unseen)
    old = new
    while old == new:
        old = choice(rng, source.seen[look])
    return (new, old), look, LAYOUTS[choice(rng, RELATIONS)]


def _things(codes: tuple[str, ...], look: str, boxes: tuple[Box, ...]) -> tuple[Thing, ...]:
    return tuple(Thing(code, look, box) for code, box in zip(codes, boxes, strict=True))


def _named(rng: np.random.Generator, source: Source, thing: Thing) -> str:
    """ "the turtle" or "the thing on the left"."""
    return f"the thing {PLACES[thing.box]}" if rng.random() < _PLACE_SAID else f"the {source.name(thing.code)}"


def edit_rows(
    count: int, seed: int, split: str = "train", *, folder: str | Path, which: str = "things", unseen: bool = False, wordings: str = "trained"
) -> Iterator[Row]:
    """Rows of edits in the form that training reads, the kinds in turn; see `vargpt_hf.evaluation.edits.edit_row`.

    Args:
        count: how many rows.
        seed: names the rows for good.
        split: "train" or "test"; no seed serves both.
        folder: of the packages, see `packages.fetch`.
        which: "things" or "all" concepts.
        unseen: see `sample_edit`; for tests.
        wordings: "trained", or "held out" ones, for tests.

    Raises:
        ValueError: an unknown split or set of wordings, or what is for tests in training.
        OSError: packages that cannot be read.
    """
    check_split(split, wordings, unseen)
    source = source_of(folder, which)
    rng = np.random.default_rng([seed, split == "test", WORDINGS.index(wordings), 5])
    kinds = [kind for kind in EDIT_KINDS if kind != "remove" or not unseen]
    for index in range(count):
        edit = sample_edit(rng, source, kinds[index % len(kinds)], unseen, wordings == "held out")
        images = (render(source.pictures, things) for things in (edit.before, edit.after))
        yield edit_row(next(images), edit.instruction, next(images), rng.random() < 0.5, {**edit.truth, "wordings": wordings})


__all__ = ["EDIT_KINDS", "Edit", "Thing", "edit_rows", "render", "sample_edit"]
