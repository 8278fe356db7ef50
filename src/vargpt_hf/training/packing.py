"""Rows of a batch cut to a length, never inside an image, and laid end to end without padding.

Both work on the tensors that the processor makes of rows padded on the right: B rows, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100
OF_TOKENS = ("input_ids", "attention_mask", "labels", "token_type_ids", "mm_token_type_ids")  # (B, T)
# Of images to draw, in reading order over the batch.
DRAWN = ("output_pixel_values", "output_image_codes", "output_image_schedule_ids", "output_image_num_scales")
SPANS = ("image_spans", "output_image_spans")  # for each row the (first, last + 1) tokens of its images


def without_fine_scales(inputs: dict[str, Any], num_positions: Sequence[int], pad_token_id: int) -> dict[str, Any]:
    """The batch with fewer placeholders of its images to draw, in reading order as many as `num_positions` says, the first ones.

    Args:
        inputs: what the processor returns with `return_image_spans`.
    """
    kept, lengths = inputs["attention_mask"].bool(), iter(num_positions)
    for row, drawn in enumerate(inputs[SPANS[1]]):
        for start, stop in drawn:
            kept[row, start + 1 + next(lengths) : stop - 1] = False  # between image-start and image-end
    before = F.pad(kept.cumsum(1), (1, 0))  # tokens that are kept before each
    spans = {name: [[tuple(before[row, list(span)].tolist()) for span in of_row] for row, of_row in enumerate(inputs[name])] for name in SPANS}
    rest = kept.sum(1)
    order = (~kept).int().argsort(dim=1, stable=True)[:, : int(rest.max())]
    there = torch.arange(order.shape[1]) < rest[:, None]
    padding = _padding(pad_token_id)
    of_tokens = {name: inputs[name].gather(1, order).masked_fill(~there, padding[name]) for name in OF_TOKENS if name in inputs}
    return {**inputs, **spans, **of_tokens}


@dataclass(frozen=True)
class RowPart:
    """What is kept of one row of a batch.

    Args:
        row: its number in the batch.
        length: its tokens.
        images: numbers, in the batch, of its images to read.
        drawings: of its images to draw.
    """

    row: int
    length: int
    images: range
    drawings: range


def parts_of_rows(inputs: dict[str, Any], lengths: Sequence[int]) -> list[RowPart]:
    """All of every row, with its share of the batch's images, which lie in reading order.

    Args:
        inputs: what the processor returns with `return_image_spans`.
        lengths: tokens of each row without padding.
    """
    parts, images, drawings = [], 0, 0
    for row, length in enumerate(lengths):
        read, drawn = (len(inputs[name][row]) for name in SPANS)
        parts.append(RowPart(row, length, range(images, images + read), range(drawings, drawings + drawn)))
        images, drawings = images + read, drawings + drawn
    return parts


def cut(part: RowPart, inputs: dict[str, Any], max_length: int) -> RowPart:
    """The longest start of a row of at most `max_length` tokens that ends before or after an image, never inside.

    An image to draw begins with its image-start token and ends with image-end; an image to read, with what its reader writes around it.
    """
    if part.length <= max_length:
        return part
    spans = [inputs[name][part.row] for name in SPANS]
    end = min([max_length, *(start for of_kind in spans for start, stop in of_kind if start < max_length < stop)])
    images, drawings = (sum(stop <= end for _, stop in of_kind) for of_kind in spans)
    return replace(part, length=end, images=part.images[:images], drawings=part.drawings[:drawings])


def bins_of(parts: Sequence[RowPart], capacity: int | None = None) -> list[list[RowPart]]:
    """Rows distributed over as few bins as first-fit-decreasing finds.

    Args:
        capacity: tokens that a bin holds; by default as many as the longest row. Rows longer than that have a bin of their own.
    """
    capacity = max((part.length for part in parts), default=0) if capacity is None else capacity
    bins: list[list[RowPart]] = []
    for part in sorted(parts, key=lambda part: -part.length):
        roomy = (found for found in bins if sum(other.length for other in found) + part.length <= capacity)
        found = next(roomy, None)
        if found is None:
            bins.append([part])
        else:
            found.append(part)
    return bins


def take(inputs: dict[str, Any], parts: Sequence[RowPart], pad_token_id: int) -> dict[str, torch.Tensor]:
    """The batch with its rows cut as `parts`, all rows in their order, say, padded on the right as far as is needed.

    What is cut off is padding in every tensor: a placeholder of an image that stayed among the tokens would have no image. Of images that
    are read [`images_of_parts`] tells what is kept.
    """
    longest = max(part.length for part in parts)
    padding = _padding(pad_token_id)
    taken = {name: inputs[name][:, :longest].clone() for name in OF_TOKENS if name in inputs}
    for part in parts:
        for name, value in taken.items():
            value[part.row, part.length :] = padding[name]
    return {**taken, **_drawings(inputs, parts)}


def pack(inputs: dict[str, Any], bins: Sequence[Sequence[RowPart]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """The batch with the rows of each bin end to end in one row.

    Each row's `position_ids` begin with 0, and there is no `attention_mask`: so Transformers' masks keep rows apart, and the padding at the
    end, of position 0 everywhere, too. No row's first token is a target, which the row before it would have to predict.

    Raises:
        ValueError: inputs of a backbone whose positions or masks follow from its images.
    """
    if depends := [name for name in inputs if name.endswith(("token_type_ids", "_grid_thw"))]:
        raise ValueError(
            f"Rows of this backbone cannot be packed: its positions or masks follow from {', '.join(depends)}, not from token order alone. "
            "Turn `packing` off."
        )
    longest = max(sum(part.length for part in parts) for parts in bins)
    shape = (len(bins), longest)
    packed = {
        "input_ids": torch.full(shape, pad_token_id),
        "position_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORE_INDEX),
    }
    for index, parts in enumerate(bins):
        start = 0
        for part in parts:
            here = slice(start, start + part.length)
            packed["input_ids"][index, here] = inputs["input_ids"][part.row, : part.length]
            packed["position_ids"][index, here] = torch.arange(part.length)
            packed["labels"][index, start + 1 : start + part.length] = inputs["labels"][part.row, 1 : part.length]
            start += part.length
    return {**packed, **_drawings(inputs, [part for parts in bins for part in parts])}


def _padding(pad_token_id: int) -> dict[str, int]:
    """What stands behind a row, in each tensor of its tokens."""
    return dict.fromkeys(OF_TOKENS, 0) | {"input_ids": pad_token_id, "labels": IGNORE_INDEX}


def num_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    """Tokens of a batch, packed or padded; padding does not count, nor does a packed row of one token, from which nothing is learned."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum()
    positions = inputs["position_ids"]
    return (positions > 0).sum() + (positions == 1).sum()  # a row's token of position 0 is one of those that a 1 follows


def _drawings(inputs: dict[str, torch.Tensor], parts: Sequence[RowPart]) -> dict[str, torch.Tensor]:
    """The drawn images that the parts have, in their order; nothing where none has."""
    kept = [index for part in parts for index in part.drawings]
    return {name: inputs[name][kept] for name in DRAWN if name in inputs and kept}


def images_of_parts(inputs: dict[str, Any], parts: Sequence[RowPart]) -> dict[str, torch.Tensor] | None:
    """What belongs to the images that the parts read, in their order; nothing where none reads any.

    None where it cannot be taken out of the whole, since it does not lie image by image in the first dimension: some readers lay out patches
    flat, or tiles by row. What they make of some of the images, they must make anew.
    """
    read = {name: value for name, value in inputs.items() if name not in (*OF_TOKENS, *DRAWN, *SPANS)}
    kept, num_images = [index for part in parts for index in part.images], sum(len(row) for row in inputs[SPANS[0]])
    if not kept:
        return {}
    if kept == list(range(num_images)):
        return read
    by_image = all(len(value) == num_images for value in read.values()) and read["pixel_values"].ndim == 4
    return {name: value[kept] for name, value in read.items()} if by_image else None
