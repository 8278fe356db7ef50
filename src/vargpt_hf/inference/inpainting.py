"""In-painting: an image and a mask in, the settings of `generate` out with which the image keeps its codes outside of the mask."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps

from ..modeling.image_sampling_vargpt import redrawn_positions
from ..modeling.image_tokenizer_vargpt import NO_CODE

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor


@torch.no_grad()
def keep_outside(
    model: "VargptForConditionalGeneration", processor: "VargptProcessor", images: Sequence[Any], masks: Sequence[Any], coverage: float = 0.5
) -> dict[str, Any]:
    """Settings of `generate` with which each image is drawn anew inside of its mask, and keeps its codes outside.

    Each is drawn in the size nearest to its own; what of it is beyond that size is cut off, evenly on both sides.

    Args:
        images: one for each row, in any form that the processor takes.
        masks: for each image another one of the same size, bright (or transparent) where it is to be drawn anew, and
            dark where it stays.
        coverage: see [`redrawn_positions`].

    Returns:
        `output_image_size`, `output_image_codes_to_keep` and `output_image_mask`.

    Raises:
        ValueError: other masks in number or size than images, images that cannot be used, or a coverage out of range.
    """
    prepare = processor.output_image_processor
    opened = [prepare.fetch_images(image, f"images[{index}]") for index, image in enumerate(images)]
    marks = [prepare.fetch_images(mask, f"masks[{index}]") for index, mask in enumerate(masks)]
    if len(opened) != len(marks):
        raise ValueError(f"There are {len(marks)} masks for {len(opened)} images: give one for each.")
    sizes, codes, redrawn = [], [], []
    for index, (original, mark) in enumerate(zip(opened, marks)):
        if original.size != mark.size:
            raise ValueError(f"masks[{index}] is {mark.width}x{mark.height}, but its image is {original.width}x{original.height}.")
        chosen = prepare.nearest_schedule(original.height, original.width)
        schedule, (height, width) = model.config.schedules[chosen], prepare.sizes[chosen]
        fitted = ImageOps.fit(original, (width, height), Image.Resampling(prepare.resample))
        pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8).view(1, height, width, 3).permute(0, 3, 1, 2) / 127.5 - 1
        mask = ImageOps.fit(mark.convert("L"), (width, height), Image.Resampling.BOX)
        bright = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8).view(1, height, width) >= 128
        sizes.append((height, width))
        codes.append(model.encode_images(pixels.to(model.device), schedule)[0])
        redrawn.append(redrawn_positions(bright.to(model.device), schedule, coverage)[0])
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "output_image_size": sizes,
        "output_image_codes_to_keep": pad(codes, batch_first=True, padding_value=NO_CODE),
        "output_image_mask": pad(redrawn, batch_first=True),
    }


__all__ = ["keep_outside"]
