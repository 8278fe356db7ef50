"""Scenes of one to three coloured shapes on 48 x 48 RGB pictures.

Everything is drawn by a `numpy.random.Generator` that the caller seeds, so that a seed names a picture for good. Coordinates are pixels, x to
the right and y down, of the finished picture.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

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
SIZES: dict[str, int] = {"small": 12, "large": 18}  # side of the bounding box, pixels
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
RELATIONS = ("above", "below", "left of", "right of")
KINDS = ("single", "list", "count", "relation")

# (colour, shape) pairs that no picture to be drawn in training shows; everything else about the model's training may show them.
HELD_OUT_PAIRS = frozenset({("yellow", "cross"), ("blue", "triangle"), ("purple", "square")})
ALL_PAIRS = frozenset((colour, shape) for colour in COLOURS for shape in SHAPES)

GAP = 3  # pixels between the bounding boxes of two objects, at least
MARGIN = 2  # pixels between an object and the picture's edge, at least
ALIGNMENT = 5  # pixels that two objects in a relation may be apart on the axis that the relation does not speak of
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
) -> Scene:
    """A random scene.

    Args:
        rng: where all chance comes from.
        kind: one of `KINDS`; any of them by default.
        pairs: the (colour, shape) pairs that may be shown.
        must_show: when not empty, the first object's pair is one of these (and the others come from `pairs`).
        num_objects: 2 or 3 for "list", 2 or 3 for "count"; random by default. "single" has one and "relation" two.
        background: a name of `BACKGROUNDS`; by default white with probability `white_share`, else one of the others.

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
    if relation is None:
        centres = _place_apart(rng, [SIZES[size] for size in sizes])
    else:
        centres = _place_related(rng, relation, SIZES[sizes[0]], SIZES[sizes[1]])
    objects = tuple(SceneObject(s, c, size, centre) for (c, s), size, centre in zip(chosen, sizes, centres, strict=True))
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


def _place_apart(rng: np.random.Generator, sides: list[int]) -> list[tuple[int, int]]:
    """Centres such that all boxes are at least GAP apart; three large boxes always fit, so that starting afresh ends soon."""
    while True:
        centres: list[tuple[int, int]] = []
        for i, side in enumerate(sides):
            for _ in range(20):
                low, high = side // 2 + MARGIN, PICTURE_SIZE - side // 2 - MARGIN
                x, y = (int(v) for v in rng.integers(low, high + 1, size=2))
                if all(max(abs(x - u), abs(y - v)) >= (side + sides[j]) // 2 + GAP for j, (u, v) in enumerate(centres)):
                    centres.append((x, y))
                    break
            if len(centres) <= i:
                break
        if len(centres) == len(sides):
            return centres


def _place_related(rng: np.random.Generator, relation: str, first: int, second: int) -> list[tuple[int, int]]:
    """Centres of two boxes, the first in `relation` to the second: apart on that axis, nearly level on the other."""
    low, high = MARGIN, PICTURE_SIZE - MARGIN
    before, after = (first, second) if relation in ("above", "left of") else (second, first)
    # Along the axis: the room that the two boxes and the gap leave, shared out at random.
    room = (high - low) - before - after - GAP
    lead, extra = sorted(int(v) for v in rng.integers(0, room + 1, size=2))
    start = low + lead + before // 2
    end = low + extra + before + GAP + after // 2
    widest = max(first, second) // 2
    level = int(rng.integers(low + widest, high - widest + 1))
    shift = int(rng.integers(-ALIGNMENT, ALIGNMENT + 1))
    other = min(max(level + shift, low + widest), high - widest)
    along = (start, end) if relation in ("above", "left of") else (end, start)
    across = (level, other)
    if relation in ("above", "below"):
        return [(across[0], along[0]), (across[1], along[1])]
    return [(along[0], across[0]), (along[1], across[1])]
