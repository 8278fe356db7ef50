"""Codes of images to draw, as people and files give them, to one array.

Shapes: N images, L positions of the longest, l of one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .image_processing_vargpt import VargptImageProcessor

NO_CODE = -1  # behind the codes of images with fewer positions than others


def stack_codes(
    codes: list[Any], schedule_ids: Sequence[int] | int | None, processor: VargptImageProcessor
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Codes of N images to (N, L) int64, `NO_CODE` behind those of images with fewer, and the schedule of each.

    Args:
        codes: one array, tensor or list (l,) for each image.
        schedule_ids: of each image, or one of all; by default the one that has as many positions.
        processor: of images to draw, which knows the schedules.

    Returns:
        `output_image_codes` (N, L) and, where there are several schedules, `output_image_schedule_ids` (N,); and the schedules as a list.

    Raises:
        ValueError: codes that are no whole numbers from 0, or are other in number than any schedule or the given one has positions.
    """
    lengths = processor.num_positions
    arrays = [_array_of_codes(code, index) for index, code in enumerate(codes)]
    if len(lengths) > 1 and schedule_ids is None:
        schedule_ids = [_schedule_of_codes(array, index, processor.num_positions) for index, array in enumerate(arrays)]
    ids = processor.check_schedule_ids(0 if schedule_ids is None else schedule_ids, len(arrays))
    stacked = np.full((len(codes), max(lengths[index] for index in ids)), NO_CODE, dtype=np.int64)
    for index, (array, schedule) in enumerate(zip(arrays, ids)):
        length = lengths[schedule]
        kept = array[:length] if array.ndim == 1 and (array[length:] == NO_CODE).all() else array
        if kept.shape != (length,) or kept.dtype.kind not in "iu" or kept.min() < 0:
            raise ValueError(
                f"output_image_codes[{index}] has shape {array.shape} and dtype {array.dtype}; an image has "
                f"{length} codes, integers of at least 0."
            )
        stacked[index, :length] = kept
    several = {"output_image_schedule_ids": np.asarray(ids, dtype=np.int64)} if len(lengths) > 1 else {}
    return {"output_image_codes": stacked, **several}, ids


def _schedule_of_codes(codes: np.ndarray, index: int, num_positions: list[int]) -> int:
    """The only schedule with as many positions as these codes."""
    length = int((codes != NO_CODE).sum())
    fitting = [schedule for schedule, positions in enumerate(num_positions) if positions == length]
    if len(fitting) != 1:
        raise ValueError(
            f"output_image_codes[{index}] has {length} codes, as images of {len(fitting)} schedules have (of positions "
            f"{num_positions}): say which one by `output_image_schedule_ids`."
        )
    return fitting[0]


def _array_of_codes(code: Any, index: int) -> np.ndarray:
    """The codes of one image as an array, of whatever shape."""
    try:
        return np.asarray(code.detach().cpu() if isinstance(code, torch.Tensor) else code)
    except (ValueError, TypeError, RuntimeError) as error:  # of uneven lists, of tensors on no device
        raise ValueError(f"output_image_codes[{index}] are no codes: {error}.") from error


__all__ = ["NO_CODE", "stack_codes"]
