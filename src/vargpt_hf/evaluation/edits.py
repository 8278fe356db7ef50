"""Edits by instruction: rows with an image, an instruction and the edited image, and a model that draws what they ask for."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..inference.drawing import answer
from ..tiny.rows import DRAWING, IMAGE, Row

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor


def edit_row(
    before: Image.Image, instruction: str, after: Image.Image, image_first: bool = True, truth: Mapping[str, Any] | None = None
) -> Row:
    """A conversation in which an image is read with an instruction, and drawn anew.

    Args:
        before, after: the image, and what it is to become.
        instruction: what the user says.
        image_first: whether it stands before the instruction, or after it.
        truth: what a judge wants to know, as JSON in a column `truth`.
    """
    asked = [dict(IMAGE), {"type": "text", "text": instruction}]
    messages = [
        {"role": "user", "content": asked if image_first else asked[::-1]},
        {"role": "assistant", "content": [dict(DRAWING)]},
    ]
    row = {"messages": messages, "images": [before], "output_images": [after]}
    return row if truth is None else {**row, "truth": json.dumps(truth)}


def instruction_of(row: Row) -> str:
    """What the user of a row says."""
    return next(part["text"] for part in row["messages"][0]["content"] if part["type"] == "text")


def draw_edits(
    model: "VargptForConditionalGeneration",
    processor: "VargptProcessor",
    rows: Sequence[Row],
    masks: Sequence[np.ndarray] | None = None,
    batch_size: int = 50,
) -> list[Image.Image]:
    """The image that a model draws for each row, its likeliest codes taken.

    Args:
        rows: see `edit_row`.
        masks: booleans (height, width) of what may change of each image, as large as the model draws: outside the image keeps its codes. None:
            all of it is drawn anew.
        batch_size: rows that are drawn together.
    """
    drawn = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        settings: dict[str, Any] = {"images": [row["images"] for row in batch], "do_sample": False}
        if masks is not None:
            before = [row["images"][0] for row in batch]
            pixels = processor.output_image_processor(before, return_tensors="pt")["output_pixel_values"]
            settings["output_image_codes_to_keep"] = model.encode_images(pixels.to(model.device, model.dtype))
            settings["output_image_mask"] = torch.tensor(np.stack(masks[start : start + batch_size]), device=model.device)
        drawn += answer(model, processor, [row["messages"][:1] for row in batch], "image", **settings).images
    return drawn


__all__ = ["draw_edits", "edit_row", "instruction_of"]
