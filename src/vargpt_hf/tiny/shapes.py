"""Scenes of one to three coloured shapes on 48 x 48 RGB pictures.

Everything is drawn by a `numpy.random.Generator` that the caller seeds, so that a seed names a picture for good. Coordinates are pixels, x to
the right and y down, of the finished picture.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw

PICTURE_SIZE = 48
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 36),
    "green": (28, 168, 56),
    "blue": (32, 72, 224),
    "yellow": (248, 220, 24),
    "purple": (148, 40, 184),
    "orange": (250, 132, 16),
}
SIZES: dict[str, int] = {"small": 12, "large": 16}  # side of the bounding box, pixels
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
RELATIONS = ("above", "below", "left of", "right of")
KINDS = ("single", "list", "count", "relation")

# (colour, shape) pairs that no picture to be drawn in training shows; everything else about the model's training may show them.
HELD_OUT_PAIRS = frozenset({("yellow", "cross"), ("blue", "triangle"), ("purple", "square")})
ALL_PAIRS = frozenset((colour, shape) for colour in COLOURS for shape in SHAPES)

STEP = 12  # pixels from one place of a bounding box to the next: few places, which a model of few parameters can learn to draw
GAP = 4  # pixels between the bounding boxes of two objects, at least
MARGIN = 4  # pixels between an object and the picture's edge, at least
ALIGNMENT = 4  # pixels that two objects in a relation may be apart on the axis that the relation does not speak of
SUPERSAMPLING = 4

Pair = tuple[str, str]


@dataclass(frozen=True)
class SceneObject:
    """One shape: its names and its centre in pixels."""

    shape: str
    colour: str
    size: str
    centre: tuple[int, int]

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
        objects = [{"shape": o.shape, "colour": o.colour, "size": o.size, "centre": list(o.centre)} for o in self.objects]
        return {"kind": self.kind, "background": self.background, "relation": self.relation, "objects": objects}


def relation_between(first: SceneObject, second: SceneObject) -> str | None:
    """Where `first` lies seen from `second`, or None when that could be disputed (boxes overlap on the axis, or they lie askew)."""
    dx, dy = first.centre[0] - second.centre[0], first.centre[1] - second.centre[1]
    apart = (first.side + second.side) // 2 + GAP
    if abs(dy) >= apart and abs(dx) <= ALIGNMENT:
        return "above" if dy < 0 else "below"
    if abs(dx) >= apart and abs(dy) <= ALIGNMENT:
        return "left of" if dx < 0 else "right of"
    return None


def sample_scene(
    rng: np.random.Generator,
    kind: str | None = None,
    *,
    pairs: Collection[Pair] = ALL_PAIRS,
    must_show: Collection[Pair] = (),
    num_objects: int | None = None,
    background: str | None = None,
    white_share: float = 0.6,
    step: int = STEP,
) -> Scene:
    """A random scene.

    Args:
        rng: where all chance comes from.
        kind: one of `KINDS`; any of them by default.
        pairs: the (colour, shape) pairs that may be shown.
        must_show: when not empty, the first object's pair is one of these (and the others come from `pairs`).
        num_objects: 2 or 3 for "list", 2 or 3 for "count"; random by default. "single" has one and "relation" two.
        background: a name of `BACKGROUNDS`; by default white with probability `white_share`, else one of the others.
        step: pixels from one place where an object may stand to the next.

    Raises:
        ValueError: an unknown kind, or a number of objects that the kind cannot have.
    """
    kind = _choice(rng, KINDS) if kind is None else kind
    allowed = {"single": (1,), "list": (2, 3), "count": (2, 3), "relation": (2,)}
    if kind not in allowed:
        raise ValueError(f"kind is {kind!r}; it must be one of {KINDS}")
    count = _choice(rng, allowed[kind]) if num_objects is None else num_objects
    if count not in allowed[kind]:
        raise ValueError(f"a {kind!r} scene has {allowed[kind]} objects, not {count}")
    if background is None:
        others = [name for name in BACKGROUNDS if name != "white"]
        background = "white" if rng.random() < white_share else _choice(rng, others)

    chosen = _sample_pairs(rng, kind, count, sorted(pairs), sorted(must_show))
    if kind == "count":  # alike in size too, as "three small circles" says
        sizes = [_choice(rng, list(SIZES))] * count
    else:
        sizes = [_choice(rng, list(SIZES)) for _ in range(count)]
    relation = _choice(rng, RELATIONS) if kind == "relation" else None
    while True:  # places that do not fit are thrown away together, so that all that fit are equally likely
        objects = tuple(SceneObject(s, c, size, _place(rng, SIZES[size], step)) for (c, s), size in zip(chosen, sizes, strict=True))
        if relation is not None and relation_between(*objects) != relation:
            continue
        if all(_are_apart(first, second) for first, second in combinations(objects, 2)):
            return Scene(objects, background, kind, relation)


def render(scene: Scene) -> Image.Image:
    """The scene as a 48 x 48 RGB picture with smooth edges."""
    side = PICTURE_SIZE * SUPERSAMPLING
    picture = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(picture)
    for item in scene.objects:
        _draw_object(draw, item)
    return picture.reduce(SUPERSAMPLING)


def _draw_object(draw: ImageDraw.ImageDraw, item: SceneObject) -> None:
    k, half, fill = SUPERSAMPLING, item.side / 2, COLOURS[item.colour]
    left, top = (item.centre[0] - half) * k, (item.centre[1] - half) * k
    right, bottom = left + item.side * k - 1, top + item.side * k - 1  # Pillow's boxes include their last pixel
    if item.shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=fill)
    elif item.shape == "square":
        draw.rectangle((left, top, right, bottom), fill=fill)
    elif item.shape == "triangle":
        draw.polygon([((left + right) / 2, top), (left, bottom), (right, bottom)], fill=fill)
    else:
        arm = math.floor(item.side * k / 3)  # a plus: two bars, each a third as wide as it is long
        draw.rectangle((left, top + arm, right, bottom - arm), fill=fill)
        draw.rectangle((left + arm, top, right - arm, bottom), fill=fill)


def _choice(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _sample_pairs(rng: np.random.Generator, kind: str, count: int, pairs: list[Pair], must_show: list[Pair]) -> list[Pair]:
    first = _choice(rng, must_show or pairs)
    if kind == "count":
        return [first] * count
    chosen = [first]
    while len(chosen) < count:
        chosen.append(_choice(rng, [pair for pair in pairs if pair not in chosen]))
    if kind == "list" or kind == "relation":  # a required pair may stand anywhere in the sentence
        chosen = [chosen[i] for i in rng.permutation(count)]
    return chosen


def _place(rng: np.random.Generator, side: int, step: int) -> tuple[int, int]:
    """Centre of a box of this side whose corner lies a number of steps from that of the margin."""
    x, y = (MARGIN + step * int(index) for index in rng.integers((PICTURE_SIZE - 2 * MARGIN - side) // step + 1, size=2))
    return x + side // 2, y + side // 2


def _are_apart(first: SceneObject, second: SceneObject) -> bool:
    distance = max(abs(a - b) for a, b in zip(first.centre, second.centre, strict=True))
    return distance >= (first.side + second.side) // 2 + GAP
