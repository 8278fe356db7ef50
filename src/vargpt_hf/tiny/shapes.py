"""Scenes of one to three coloured shapes on 48 x 48 RGB images.

Everything is drawn by a `numpy.random.Generator` that the caller seeds, so that a seed names an image for good. Coordinates are pixels, x to
the right and y down, of the finished image.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

T = TypeVar("T")
Pair = tuple[str, str]  # (colour, shape)
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom of an object, pixels before they are reduced
Form = Callable[[ImageDraw.ImageDraw, Box, Colour, Colour], None]  # draws a shape: where, its colour, that of the background

IMAGE_SIZE = 48
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, Colour] = {
    "red": (222, 28, 36),
    "green": (28, 168, 56),
    "blue": (32, 72, 224),
    "yellow": (248, 220, 24),
    "purple": (148, 40, 184),
    "orange": (250, 132, 16),
}
SIZES: dict[str, int] = {"small": 10, "large": 14}  # side of the bounding box, pixels
BACKGROUNDS: dict[str, Colour] = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
RELATIONS = ("above", "below", "left of", "right of")
KINDS = ("single", "list", "count", "relation")

# (colour, shape) pairs that no image to be drawn in training shows, nor one that trains the image tokenizer: a code that only they
# had, nothing could learn to draw. Images to read may show them.
HELD_OUT_PAIRS = frozenset({("yellow", "cross"), ("blue", "triangle"), ("purple", "square")})
ALL_PAIRS = frozenset((colour, shape) for colour in COLOURS for shape in SHAPES)

# Objects stand in the middle of a square of a board of 3 x 3, which patches of 8 pixels cut in four: a quarter of a shape looks alike
# wherever it stands, so that models of few parameters can learn to draw and to see it.
BOARD_SIDE = 3
SQUARE_SIZE = IMAGE_SIZE // BOARD_SIDE
PLACES: dict[tuple[int, int], str] = {  # square (column, row): where that is
    (0, 0): "at the top left",
    (1, 0): "at the top",
    (2, 0): "at the top right",
    (0, 1): "on the left",
    (1, 1): "in the middle",
    (2, 1): "on the right",
    (0, 2): "at the bottom left",
    (1, 2): "at the bottom",
    (2, 2): "at the bottom right",
}
ARRANGEMENTS: dict[int | str, tuple[tuple[int, int], ...]] = {  # of so many objects, in the order of the words, or of a relation
    1: ((1, 1),),
    2: ((0, 1), (2, 1)),
    3: ((0, 0), (2, 0), (1, 2)),
    "above": ((1, 0), (1, 2)),
    "below": ((1, 2), (1, 0)),
    "left of": ((0, 1), (2, 1)),
    "right of": ((2, 1), (0, 1)),
}
SUPERSAMPLING = 4


@dataclass(frozen=True)
class SceneObject:
    """One shape: its names and its square (column, row) of the board."""

    shape: str
    colour: str
    size: str
    place: tuple[int, int]

    @property
    def centre(self) -> tuple[int, int]:
        """Middle of the bounding box (x, y), pixels."""
        return tuple(SQUARE_SIZE * index + SQUARE_SIZE // 2 for index in self.place)

    @property
    def side(self) -> int:
        """Side of the bounding box, pixels."""
        return SIZES[self.size]

    @property
    def pair(self) -> Pair:
        """(colour, shape)."""
        return (self.colour, self.shape)


@dataclass(frozen=True)
class Scene:
    """Objects on a plain background. `relation` says where the first object lies, seen from the second; None when nothing is promised."""

    objects: tuple[SceneObject, ...]
    background: str = "white"
    kind: str = "single"
    relation: str | None = None

    def to_dict(self) -> dict:
        """The scene as plain JSON values."""
        objects = [{"shape": o.shape, "colour": o.colour, "size": o.size, "place": list(o.place)} for o in self.objects]
        return {"kind": self.kind, "background": self.background, "relation": self.relation, "objects": objects}


def relation_between(first: SceneObject, second: SceneObject) -> str | None:
    """Where `first` lies seen from `second`, or None where they lie askew and that could be disputed."""
    right, down = (a - b for a, b in zip(first.place, second.place, strict=True))
    if right and down:
        return None
    if right:
        return "left of" if right < 0 else "right of"
    return "above" if down < 0 else "below"


def sample_scene(
    rng: np.random.Generator,
    kind: str | None = None,
    *,
    pairs: Collection[Pair] = ALL_PAIRS,
    must_show: Collection[Pair] = (),
    num_objects: int | None = None,
    background: str | None = None,
    white_share: float = 0.6,
    sizes: Sequence[str] = tuple(SIZES),
    arranged: bool = False,
) -> Scene:
    """A random scene.

    Args:
        rng: where all chance comes from.
        kind: one of `KINDS`; any of them by default.
        pairs: the (colour, shape) pairs that may be shown.
        must_show: when not empty, the first object's pair is one of these (and the others come from `pairs`).
        num_objects: 2 or 3 for "list", 2 or 3 for "count"; random by default. "single" has one and "relation" two.
        background: a name of `BACKGROUNDS`; by default white with probability `white_share`, else one of the others.
        sizes: the names of `SIZES` that objects may have.
        arranged: put the objects where `ARRANGEMENTS` has them, not anywhere.

    Raises:
        ValueError: an unknown kind, or a number of objects that the kind cannot have.
    """
    kind = choice(rng, KINDS) if kind is None else kind
    allowed = {"single": (1,), "list": (2, 3), "count": (2, 3), "relation": (2,)}
    if kind not in allowed:
        raise ValueError(f"kind is {kind!r}; it must be one of {KINDS}")
    count = choice(rng, allowed[kind]) if num_objects is None else num_objects
    if count not in allowed[kind]:
        raise ValueError(f"a {kind!r} scene has {allowed[kind]} objects, not {count}")
    if background is None:
        others = [name for name in BACKGROUNDS if name != "white"]
        background = "white" if rng.random() < white_share else choice(rng, others)

    chosen = _sample_pairs(rng, kind, count, sorted(pairs), sorted(must_show))
    if kind == "count":  # alike in size too, as "three small circles" says
        chosen_sizes = [choice(rng, sizes)] * count
    else:
        chosen_sizes = [choice(rng, sizes) for _ in range(count)]
    relation = choice(rng, RELATIONS) if kind == "relation" else None
    while True:  # places that do not fit are thrown away together, so that all that fit are equally likely
        places = ARRANGEMENTS[relation or count] if arranged else _sample_places(rng, count)
        objects = tuple(SceneObject(s, c, size, place) for (c, s), size, place in zip(chosen, chosen_sizes, places, strict=True))
        if relation is None or relation_between(*objects) == relation:
            return Scene(objects, background, kind, relation)


def _circle(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    draw.ellipse(box, fill=fill)


def _square(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    draw.rectangle(box, fill=fill)


def _triangle(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    left, top, right, bottom = box
    draw.polygon([((left + right) / 2, top), (left, bottom), (right, bottom)], fill=fill)


def _cross(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    """A plus: two bars, each a third as wide as it is long."""
    left, top, right, bottom = box
    arm = math.floor((right - left + 1) / 3)
    draw.rectangle((left, top + arm, right, bottom - arm), fill=fill)
    draw.rectangle((left + arm, top, right - arm, bottom), fill=fill)


FORMS: dict[str, Form] = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}


def render(scene: Scene, size: int = IMAGE_SIZE, colours: Mapping[str, Colour] = COLOURS, forms: Mapping[str, Form] = FORMS) -> Image.Image:
    """The scene as a square RGB image with smooth edges.

    Args:
        size: side of the image, pixels, a divisor of 192; everything in it grows with it.
        colours: red, green and blue of each colour's name, 0 to 255.
        forms: what draws each shape.

    Raises:
        ValueError: another size.
    """
    side = IMAGE_SIZE * SUPERSAMPLING
    if size < 1 or side % size:
        raise ValueError(f"`size` must divide {side}, got {size}.")
    background = BACKGROUNDS[scene.background]
    image = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        forms[item.shape](draw, _box(item), colours[item.colour], background)
    return image.reduce(side // size)


def _box(item: SceneObject) -> Box:
    left, top = ((centre - item.side / 2) * SUPERSAMPLING for centre in item.centre)
    last = item.side * SUPERSAMPLING - 1  # Pillow's boxes include their last pixel
    return left, top, left + last, top + last


def choice(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of them, all alike likely."""
    return options[int(rng.integers(len(options)))]


def _sample_pairs(rng: np.random.Generator, kind: str, count: int, pairs: list[Pair], must_show: list[Pair]) -> list[Pair]:
    first = choice(rng, must_show or pairs)
    if kind == "count":
        return [first] * count
    chosen = [first]
    while len(chosen) < count:
        chosen.append(choice(rng, [pair for pair in pairs if pair not in chosen]))
    if kind == "list" or kind == "relation":  # a required pair may stand anywhere in the sentence
        chosen = [chosen[i] for i in rng.permutation(count)]
    return chosen


def _sample_places(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    return [tuple(PLACES)[index] for index in rng.permutation(len(PLACES))[:count]]
