"""Sheets of pictures with words under them: many prompts, and drawings beside what is nearest to them in training."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_LINE, _FONT_SIZE, _GAP = 12, 10, 6  # pixels
_LETTER = 5.2  # pixels that a letter takes, about


@dataclass(frozen=True)
class Tile:
    """One field of a sheet.

    Attributes:
        images: from left to right.
        caption: under them.
    """

    images: Sequence[Image.Image]
    caption: str


def sheet(tiles: Sequence[Tile], columns: int, side: int = 64, lines: int = 3) -> Image.Image:
    """All tiles in rows on white.

    Args:
        tiles: with as many images each.
        columns: tiles of a row.
        side: of each image, pixels.
        lines: of each caption at most; what is longer ends in "…".

    Raises:
        ValueError: no tiles, or no column.
    """
    if not tiles or columns < 1:
        raise ValueError(f"A sheet needs at least one tile and one column, got {len(tiles)} and {columns}.")
    width = max(len(tile.images) for tile in tiles) * (side + 2)
    height = side + 2 + lines * _LINE
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=_FONT_SIZE)
    for index, tile in enumerate(tiles):
        left, top = _GAP + index % columns * (width + _GAP), _GAP + index // columns * (height + _GAP)
        for number, image in enumerate(tile.images):
            page.paste(image.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (left + number * (side + 2), top))
        words = textwrap.wrap(tile.caption, max(int(width / _LETTER), 8), max_lines=lines, placeholder=" …")
        for number, line in enumerate(words):
            draw.text((left, top + side + 2 + number * _LINE), line, fill="black", font=font)
    return page


__all__ = ["Tile", "sheet"]
