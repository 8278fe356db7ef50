"""Shapes in more colors and of more forms than vargpt-tiny's, for training alone.

A model learns few pairs of color and shape by heart, one by one; where there are many, it learns colors and shapes.
"""

import math
from itertools import product

import numpy as np
from PIL import ImageDraw

from ..tiny.rows import scene_to_draw
from ..tiny.shapes import COLOURS, FORMS, HELD_OUT_PAIRS, Box, Colour, Form, Scene

_SINGLE = 0.5  # share of scenes that have one object; the others have what vargpt-tiny's have
_ADDED_COLORS: dict[str, Colour] = {
    "pink": (255, 150, 190),
    "brown": (130, 76, 36),
    "cyan": (40, 210, 230),
    "magenta": (230, 40, 200),
    "lime": (160, 235, 40),
    "navy": (20, 30, 110),
    "teal": (0, 128, 128),
    "maroon": (120, 10, 40),
    "olive": (128, 128, 10),
    "gold": (212, 168, 40),
    "lavender": (190, 170, 240),
    "turquoise": (64, 220, 190),
    "beige": (236, 216, 170),
    "salmon": (250, 130, 110),
    "indigo": (75, 10, 140),
    "mint": (150, 240, 180),
    "violet": (200, 100, 230),
    "tan": (205, 170, 125),
    "crimson": (180, 10, 60),
    "azure": (90, 170, 255),
}


def _corners(box: Box, number: int, start: float = -math.pi / 2, size: float = 1.0) -> list[tuple[float, float]]:
    """Corners of a regular polygon around the middle of a box, from the angle `start` on, clockwise."""
    left, top, right, bottom = box
    x, y, radius = (left + right) / 2, (top + bottom) / 2, size * (right - left + 1) / 2
    angles = [start + 2 * math.pi * index / number for index in range(number)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _diamond(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    draw.polygon(_corners(box, 4), fill=fill)


def _pentagon(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    draw.polygon(_corners(box, 5), fill=fill)


def _hexagon(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    draw.polygon(_corners(box, 6, start=0.0), fill=fill)


def _star(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    outer, inner = _corners(box, 5), _corners(box, 5, start=-math.pi / 2 + math.pi / 5, size=0.42)
    draw.polygon([corner for both in zip(outer, inner) for corner in both], fill=fill)


def _ring(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    left, top, right, bottom = box
    width = (right - left) / 4
    draw.ellipse(box, fill=fill)
    draw.ellipse((left + width, top + width, right - width, bottom - width), fill=background)


def _heart(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    left, top, right, bottom = box
    lobe = 0.52 * (right - left + 1)
    draw.ellipse((left, top, left + lobe, top + lobe), fill=fill)
    draw.ellipse((right - lobe, top, right, top + lobe), fill=fill)
    edge, side = top + 0.72 * lobe, 0.1 * lobe
    draw.polygon([(left + side, edge), (right - side, edge), ((left + right) / 2, bottom)], fill=fill)


def _arrow(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    left, top, right, bottom = box
    x, y, half = (left + right) / 2, (top + bottom) / 2, 0.35 * (right - left + 1) / 2
    draw.polygon([(left, y - half), (x, y - half), (x, top), (right, y), (x, bottom), (x, y + half), (left, y + half)], fill=fill)


def _crescent(draw: ImageDraw.ImageDraw, box: Box, fill: Colour, background: Colour) -> None:
    left, top, right, bottom = box
    shift = 0.35 * (right - left + 1)
    draw.ellipse(box, fill=fill)
    draw.ellipse((left + shift, top, right + shift, bottom), fill=background)


ALL_COLORS = COLOURS | _ADDED_COLORS
ALL_FORMS: dict[str, Form] = FORMS | {
    "diamond": _diamond,
    "pentagon": _pentagon,
    "hexagon": _hexagon,
    "star": _star,
    "ring": _ring,
    "heart": _heart,
    "arrow": _arrow,
    "crescent": _crescent,
}
# What resembles a pair that is kept out is kept out as well: a gold star would pass for the yellow cross that training must not show.
_SIMILAR_COLORS = {
    "yellow": ("gold", "olive", "beige"),
    "blue": ("azure", "navy", "cyan", "teal", "turquoise", "indigo", "lavender"),
    "purple": ("indigo", "magenta", "violet", "lavender"),
}
_SIMILAR_SHAPES = {"cross": ("diamond", "pentagon", "star", "ring", "heart", "arrow", "crescent"), "triangle": ("pentagon",), "square": ()}
_KEPT_OUT = frozenset(
    pair for color, shape in HELD_OUT_PAIRS for pair in product((color, *_SIMILAR_COLORS[color]), (shape, *_SIMILAR_SHAPES[shape]))
)
PAIRS = frozenset(product(ALL_COLORS, ALL_FORMS)) - _KEPT_OUT  # that training draws


def varied_scene(rng: np.random.Generator) -> tuple[Scene, str]:
    """A scene to draw of all colors and shapes, without pairs that are kept out or look like them, and its words."""
    return scene_to_draw(rng, kind="single" if rng.random() < _SINGLE else None, pairs=PAIRS)


__all__ = ["ALL_COLORS", "ALL_FORMS", "PAIRS", "varied_scene"]
