"""Pictures of one, two or three things: a whole picture of 64×64 pixels, or cells of 32×32 on a white one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .pictures import PICTURE_SIZE, Pictures

CELL = PICTURE_SIZE // 2
Box = tuple[int, int, int]  # left, top, side, pixels
WHOLE: Box = (0, 0, PICTURE_SIZE)
_LEFT, _RIGHT = (0, CELL // 2, CELL), (CELL, CELL // 2, CELL)
_TOP, _BOTTOM = (CELL // 2, 0, CELL), (CELL // 2, CELL, CELL)
_TOP_LEFT, _TOP_RIGHT = (0, 0, CELL), (CELL, 0, CELL)
ONE, THREE = "one", "three"
PLACES: dict[Box, str] = {
    WHOLE: "in the middle",
    _LEFT: "on the left",
    _RIGHT: "on the right",
    _TOP: "at the top",
    _BOTTOM: "at the bottom",
    _TOP_LEFT: "at the top left",
    _TOP_RIGHT: "at the top right",
}
_ALONE = {place: (box,) for box, place in PLACES.items() if box != WHOLE}
PLACED = tuple(_ALONE)  # layouts of one thing in a cell
# Where things stand, in the order of the words: of a relation the first thing first. What stands beside another stands left of it.
LAYOUTS: dict[str, tuple[Box, ...]] = {
    ONE: (WHOLE,),
    "left of": (_LEFT, _RIGHT),
    "right of": (_RIGHT, _LEFT),
    "above": (_TOP, _BOTTOM),
    "below": (_BOTTOM, _TOP),
    "beside": (_LEFT, _RIGHT),
    THREE: (_TOP_LEFT, _TOP_RIGHT, _BOTTOM),
    **_ALONE,
}
RELATIONS = ("left of", "right of", "above", "below")
_LEAST_SCALE = 0.7  # of a picture that is read in training


@dataclass(frozen=True)
class Scene:
    """Things in one look.

    Attributes:
        codes: of the concepts, in the order of the words.
        look: of all of them.
        layout: a key of `LAYOUTS` for as many things.
    """

    codes: tuple[str, ...]
    look: str
    layout: str = ONE

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Where each thing stands."""
        return LAYOUTS[self.layout]

    @property
    def relation(self) -> str | None:
        """What can be said of the first of two things, seen from the second; "beside" is seen as "left of"."""
        seen = "left of" if self.layout == "beside" else self.layout
        return seen if seen in RELATIONS else None


def opposite(relation: str) -> str:
    """The relation the other way round: "left of" of "right of"."""
    return RELATIONS[RELATIONS.index(relation) ^ 1]


def render(pictures: Pictures, scene: Scene) -> Image.Image:
    """The picture of a scene, 64×64 RGB; not to be changed, since single ones are kept."""
    return paste(pictures, [(code, scene.look, box) for code, box in zip(scene.codes, scene.boxes, strict=True)])


def paste(pictures: Pictures, things: Sequence[tuple[str, str, Box]]) -> Image.Image:
    """The picture of things in any looks and cells, `(code, look, box)`; see `render`."""
    if [box for _, _, box in things] == [WHOLE]:
        return pictures.picture(*things[0][:2])
    canvas = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), "white")
    for code, look, (left, top, _) in things:
        canvas.paste(_small(pictures, code, look), (left, top))
    return canvas


@lru_cache(maxsize=8192)
def _small(pictures: Pictures, code: str, look: str) -> Image.Image:
    return pictures.picture(code, look).reduce(2)


def jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same picture, a little smaller and elsewhere on white: what is read in training, so that it is not known by its pixels."""
    side = int(rng.integers(round(_LEAST_SCALE * PICTURE_SIZE), PICTURE_SIZE + 1))
    left, top = (int(rng.integers(PICTURE_SIZE - side + 1)) for _ in range(2))
    canvas = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), "white")
    canvas.paste(image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=None), (left, top))
    return canvas


def crops(image: Image.Image, boxes: Sequence[Box]) -> list[Image.Image]:
    """The parts of a picture of any size where boxes are, each 64×64 RGB."""
    scale = image.width / PICTURE_SIZE
    found = []
    for left, top, side in boxes:
        box = tuple(round(scale * edge) for edge in (left, top, left + side, top + side))
        found.append(image.convert("RGB").crop(box).resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BICUBIC))
    return found


__all__ = [
    "CELL",
    "LAYOUTS",
    "ONE",
    "PLACED",
    "PLACES",
    "RELATIONS",
    "THREE",
    "WHOLE",
    "Box",
    "Scene",
    "crops",
    "jittered",
    "opposite",
    "paste",
    "render",
]
