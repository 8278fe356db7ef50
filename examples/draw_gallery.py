"""Draws the README's image: sentences, what vargpt-emoji drew, and how one drawing grew from scale to scale.

python examples/draw_gallery.py docs/drawn.png
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from vargpt_hf.cli.options import load
from vargpt_hf.inference.drawing import answer
from vargpt_hf.shipped import EMOJI_NAME

SENTENCES = (
    "a turtle in the flat look",
    "a motor scooter in the cartoon look",
    "a rocket, 3d style",
    "a panda in the cartoon look",
    "a flat birthday cake",
    "draw a mushroom in 3d style",
)
SIDE, GAP, CAPTION = 144, 12, 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default=EMOJI_NAME)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model, processor = load(arguments.model, "cpu", "float32")
    drawn = answer(model, processor, SENTENCES, "image", max_new_tokens=2, seeds=[arguments.seed] * len(SENTENCES))
    scales = model.config.schedules[0].grids
    grown = [model.decode_image_codes(drawn.output.output_image_codes[:1], num_scales=count) for count in range(1, len(scales) + 1)]
    rows = [
        list(zip(drawn.images, SENTENCES, strict=True)),
        [
            (image, f"after scale {rows_}x{columns}")
            for (rows_, columns), image in zip(scales, processor.output_image_processor.post_process(torch.cat(grown)))
        ],
    ]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows).save(arguments.output)


def sheet(rows: list[list[tuple[Image.Image, str]]]) -> Image.Image:
    """Rows of images with captions below, on light grey."""
    width = max(map(len, rows)) * (SIDE + GAP) + GAP
    page = Image.new("RGB", (width, len(rows) * (SIDE + CAPTION + GAP) + GAP), (232, 232, 232))
    draw = ImageDraw.Draw(page)
    for y, row in enumerate(rows):
        for x, (image, caption) in enumerate(row):
            left, top = GAP + x * (SIDE + GAP), GAP + y * (SIDE + CAPTION + GAP)
            page.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
            words = caption.split()
            middle = (len(words) + 1) // 2 if len(caption) > 24 else len(words)
            lines = "\n".join(filter(None, (" ".join(words[:middle]), " ".join(words[middle:]))))
            draw.multiline_text((left + SIDE / 2, top + SIDE + 2), lines, fill=(40, 40, 40), anchor="ma", align="center", spacing=1)
    return page


if __name__ == "__main__":
    main()
