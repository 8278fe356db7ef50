"""Rows of a batch cut to a length, never inside an image, and laid end to end without padding.

Both work on the tensors that the processor makes of rows padded on the right: B rows, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..processing.processing_vargpt import VargptProcessor

IGNORE_INDEX = -100
READ, DRAWN = ("pixel_values",), ("output_pixel_values", "output_image_codes")  # tensors of images, in reading order over the batch


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


def parts_of_rows(input_ids: torch.LongTensor, lengths: Sequence[int], processor: "VargptProcessor") -> list[RowPart]:
    """All of every row, with its share of the batch's images, which lie in reading order.

    Args:
        input_ids: (B, T).
        lengths: tokens of each row without padding.
    """
    parts, images, drawings = [], 0, 0
    for row, (ids, length) in enumerate(zip(input_ids, lengths)):
        read = int((ids[:length] == processor.image_token_id).sum()) // processor.image_seq_length
        drawn = int((ids[:length] == processor.output_image_token_id).sum()) // processor.num_image_gen_tokens
        parts.append(RowPart(row, length, range(images, images + read), range(drawings, drawings + drawn)))
        images, drawings = images + read, drawings + drawn
    return parts


def cut(part: RowPart, input_ids: torch.LongTensor, max_length: int, processor: "VargptProcessor") -> RowPart:
    """The longest start of a row of at most `max_length` tokens that ends before or after an image, never inside.

    An image to draw begins with its image-start token and ends with image-end.

    Args:
        input_ids: the row's tokens, (T,).
    """
    if part.length <= max_length:
        return part
    ids, end = input_ids[: part.length], max_length
    # Around the placeholders of an image: the tokens image-start and image-end, of an image to draw.
    kinds = ((processor.image_token_id, processor.image_seq_length, 0), (processor.output_image_token_id, processor.num_image_gen_tokens, 1))
    ends = []
    for token_id, places_each, around in kinds:
        places = (ids == token_id).nonzero().flatten().view(-1, places_each)
        ends.append([stop + 1 + around for stop in places[:, -1].tolist()])
        for start, stop in zip(places[:, 0].tolist(), ends[-1]):
            if start - around < max_length < stop:
                end = start - around
    kept = [sum(stop <= end for stop in stops) for stops in ends]
    return replace(part, length=end, images=part.images[: kept[0]], drawings=part.drawings[: kept[1]])


def bins_of(parts: Sequence[RowPart], capacity: int | None = None) -> list[list[RowPart]]:
    """Rows shared out among as few bins as first-fit-decreasing finds.

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


def take(inputs: dict[str, torch.Tensor], parts: Sequence[RowPart], pad_token_id: int) -> dict[str, torch.Tensor]:
    """The batch with its rows cut as `parts`, all rows in their order, say, padded on the right as far as is needed.

    What is cut off is padding in every tensor: a placeholder of an image that stayed among the tokens would have no image.
    """
    longest = max(part.length for part in parts)
    padding = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORE_INDEX}
    taken = {name: inputs[name][:, :longest].clone() for name in padding}
    for part in parts:
        for name, value in padding.items():
            taken[name][part.row, part.length :] = value
    return {**taken, **_pictures(inputs, parts)}


def pack(inputs: dict[str, torch.Tensor], bins: Sequence[Sequence[RowPart]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """The batch with the rows of each bin end to end in one row.

    Each row's `position_ids` begin with 0, and there is no `attention_mask`: so Transformers' masks keep rows apart, and the padding at the
    end, of position 0 everywhere, too. No row's first token is a target, which the row before it would have to predict.
    """
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
    return {**packed, **_pictures(inputs, [part for parts in bins for part in parts])}


def num_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    """Tokens of a batch, packed or padded; padding does not count, nor does a packed row of one token, from which nothing is learned."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum()
    positions = inputs["position_ids"]
    return (positions > 0).sum() + (positions == 1).sum()  # a row's token of position 0 is one of those that a 1 follows


def _pictures(inputs: dict[str, torch.Tensor], parts: Sequence[RowPart]) -> dict[str, torch.Tensor]:
    """The images that the parts have, in their order; nothing of a kind that none has."""
    taken = {}
    for names, kept in ((READ, [i for part in parts for i in part.images]), (DRAWN, [i for part in parts for i in part.drawings])):
        taken.update({name: inputs[name][kept] for name in names if name in inputs and kept})
    return taken
