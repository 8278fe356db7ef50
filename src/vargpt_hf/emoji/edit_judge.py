"""A judge of edits of things: is what was asked for there, and is all else as it was?

What is new is found by the nearest real picture. What stays, and what is to be empty, is compared in pixels with the wanted picture after the
model's own image tokenizer: it may differ from that by no more than the image tokenizer itself changes the real picture there.
"""

import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..tiny.rows import Row
from .judge import ThingJudge
from .pictures import PICTURE_SIZE
from .scenes import CELL, Box, crops

LEAST_CHANGE = 0.02  # root of the mean squared difference of colors in [0, 1] that nobody sees: of empty cells, which change by nothing


def judge_edits(
    judge: ThingJudge, rows: Sequence[Row], images: Sequence[Image.Image], reconstructions: Sequence[Image.Image]
) -> list[dict[str, bool]]:
    """What is right about edited pictures.

    Args:
        judge: of things.
        rows: see `edits.edit_rows`.
        images: as drawn, or other pictures in their place.
        reconstructions: the pictures that were wanted after the model's image tokenizer, see `judge.reconstructed`.

    Returns:
        Of each: "done": all that is to be new is there in the look that was asked for or goes with the rest, and what is to be gone is; "all
        else kept", where anything is to stay; "both", all of this.
    """
    truths = [json.loads(row["truth"]) for row in rows]
    found = _nearest_are_right(judge, truths, images)
    verdicts = []
    for row, truth, right, image, wanted in zip(rows, truths, found, images, reconstructions, strict=True):
        real = row["output_images"][0]
        same = {name: all(_is_same(image, wanted, real, tuple(box)) for box in truth[name]) for name in ("empty", "kept")}
        verdict = {"done": right and same["empty"]}
        if truth["kept"]:
            verdict["all else kept"] = same["kept"]
        verdicts.append({**verdict, "both": all(verdict.values())})
    return verdicts


def _nearest_are_right(judge: ThingJudge, truths: Sequence[dict], images: Sequence[Image.Image]) -> list[bool]:
    """Whether all new things of each picture are what they should be; true where nothing is new."""
    right = [True] * len(truths)
    for side in (PICTURE_SIZE, CELL):
        cells = [(index, cell) for index, truth in enumerate(truths) for cell in truth["cells"] if cell["box"][2] == side]
        parts = [crops(images[index], [tuple(cell["box"])])[0] for index, cell in cells]
        for (index, cell), ((code, look), *_) in zip(cells, judge.nearest(parts, side, top=1)):
            right[index] &= code in cell["codes"] and look == cell["look"]
    return right


def _is_same(image: Image.Image, wanted: Image.Image, real: Image.Image, box: Box) -> bool:
    """Whether a picture is, in a box, as near to the reconstruction as that is to the real picture."""
    drawn, again, truly = (_colors(one, box) for one in (image, wanted, real))
    return _distance(drawn, again) <= _distance(again, truly) + LEAST_CHANGE


def _colors(image: Image.Image, box: Box) -> np.ndarray:
    return np.asarray(crops(image, [box])[0], dtype=np.float64) / 255


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(np.mean((first - second) ** 2)))


def boxes_mask(row: Row) -> np.ndarray:
    """Booleans (64, 64) of the cells that an edit changes: what a user would mark."""
    truth, mask = json.loads(row["truth"]), np.zeros((PICTURE_SIZE, PICTURE_SIZE), dtype=bool)
    for left, top, side in (*(cell["box"] for cell in truth["cells"]), *truth["empty"]):
        mask[top : top + side, left : left + side] = True
    return mask


__all__ = ["LEAST_CHANGE", "boxes_mask", "judge_edits"]
