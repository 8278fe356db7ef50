"""How the images of one `generate` call are drawn: guidance, schedules, codes to keep, randomness, and who watches.

Shapes: B rows, N images drawn together, L positions of an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from .image_sampling_vargpt import GUIDANCE_TYPES, CodeProcessor, Generators, Guidance, redrawn_positions
from .scales_vargpt import choose_schedules


class VargptImageStreamer(ABC):
    """Receives images while they are drawn.

    Attributes:
        wants_pixels: whether `put` is to be given pixels. To decode them after every scale takes longer than to draw the codes, so that
            a progress bar says False, and is given None.
    """

    wants_pixels: bool = True

    @abstractmethod
    def put(self, images: torch.Tensor | None, rows: torch.LongTensor, scale_index: int) -> None:
        """Takes the images (N, channels, height, width) in [-1, 1] of the batch's `rows` (N,) after one scale."""

    @abstractmethod
    def end(self) -> None:
        """Called once, when generation ends."""


@dataclass
class DrawingPlan:
    """How the images of one `generate` call are drawn.

    Args:
        guidance: combines the scores of an image's decoder rows.
        code_processors: applied in turn to the scores of every scale.
        schedule_ids: scale schedule of each row's images, (B,).
        kept_codes (B, L), redrawn (B, L): codes that each row's images start from, and the positions of them that are drawn anew.
        generators: source of all randomness of the call; a list has one for each row.
        image_streamer: receives the images after every scale.
    """

    guidance: Guidance
    code_processors: Sequence[CodeProcessor]
    schedule_ids: torch.LongTensor
    kept_codes: torch.LongTensor | None = None
    redrawn: torch.BoolTensor | None = None
    generators: Generators = None
    image_streamer: VargptImageStreamer | None = None

    def of_row(self, row: int) -> "DrawingPlan":
        """The plan of one row alone."""
        one = slice(row, row + 1)
        kept, redrawn = (None, None) if self.kept_codes is None else (self.kept_codes[one], self.redrawn[one])
        generators = self.generators[one] if isinstance(self.generators, list) else self.generators
        return replace(self, schedule_ids=self.schedule_ids[one], kept_codes=kept, redrawn=redrawn, generators=generators)


def schedule_ids_of(model, size, aspect_ratio, num_rows: int, device: torch.device) -> torch.LongTensor:
    """Scale schedule of each row's images, (B,); sides of a size are pixels. `model` is the inner one.

    Raises:
        ValueError: see `choose_schedules`.
    """
    chosen = choose_schedules(model.schedules, num_rows, size, aspect_ratio, model.config.image_tokenizer_config.downsampling)
    return torch.tensor(chosen, dtype=torch.long, device=device)


def kept_codes(model, codes: Any, mask: Any, schedule_ids: torch.LongTensor) -> tuple[torch.LongTensor | None, torch.BoolTensor | None]:
    """Codes (B, L) to start from and the positions (B, L) drawn anew, checked; nothing where nothing is kept.

    Args:
        codes, mask: tensors, or arrays or nested lists that make some; see `generate`.

    Raises:
        TypeError: something that makes no tensor.
        ValueError: one without the other, or of other rows, pixels, positions or values than the images have.
    """
    if codes is None and mask is None:
        return None, None
    if codes is None or mask is None:
        raise ValueError("In-painting needs both `output_image_codes_to_keep` and `output_image_mask`.")
    codes, mask = _tensor_of("output_image_codes_to_keep", codes), _tensor_of("output_image_mask", mask)
    if codes.ndim != 2 or mask.ndim not in (2, 3):
        raise ValueError(
            "`output_image_codes_to_keep` must have the shape (rows, positions), and `output_image_mask` that or (rows, height, width) of "
            f"pixels, got {tuple(codes.shape)} and {tuple(mask.shape)}."
        )
    schedules = [model.schedules[index] for index in schedule_ids.tolist()]
    if len(codes) != len(schedules) or len(mask) != len(schedules):
        raise ValueError(
            f"`output_image_codes_to_keep` and `output_image_mask` have {len(codes)} and {len(mask)} rows, the batch {len(schedules)}."
        )
    sizes = {model.config.image_tokenizer_config.image_size(schedule) for schedule in schedules}
    # Where sizes differ, no mask could be as large as each image: one that all rows share is fitted to each.
    if mask.ndim == 3 and len(sizes) == 1 and tuple(mask.shape[1:]) not in sizes:
        (size,) = sizes
        raise ValueError(
            f"`output_image_mask` is of {' x '.join(map(str, mask.shape[1:]))} pixels, but the images are of {' x '.join(map(str, size))}."
        )
    redrawn = []
    for row, schedule in enumerate(schedules):
        length = schedule.num_positions
        model.image_tokenizer.check_codes(codes[row : row + 1, :length], schedule)
        of_row = redrawn_positions(mask[row : row + 1], schedule)[0] if mask.ndim == 3 else mask[row, :length] != 0
        if len(of_row) != length:
            raise ValueError(f"`output_image_mask` has {len(of_row)} positions in row {row}; an image of its schedule has {length}.")
        redrawn.append(of_row.to(codes.device))
    return codes.to(schedule_ids.device), torch.nn.utils.rnn.pad_sequence(redrawn, batch_first=True).to(schedule_ids.device)


def _tensor_of(name: str, value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"`{name}` must be a tensor, an array or nested lists of numbers, got {type(value).__name__}: {error}") from error


def guidance_of(settings: GenerationConfig, noise: list[torch.Tensor] | None) -> Guidance:
    """The guidance that the settings ask for; ValueError for noise that it does not use."""
    kind = GUIDANCE_TYPES[settings.output_image_guidance_type]
    if noise is not None and not kind.takes_noise:
        takers = ", ".join(repr(name) for name, other in GUIDANCE_TYPES.items() if other.takes_noise)
        raise ValueError(
            f"`output_image_noise` is used by guidance of the type {takers} alone, but `output_image_guidance_type` is "
            f"{settings.output_image_guidance_type!r}: leave the noise out, or set the type."
        )
    more = {} if noise is None else {"noise": noise}
    return kind(settings.output_image_guidance_scale, settings.output_image_guidance_ramp, **more)


def checked_generator(generator: Generators | tuple[torch.Generator, ...], num_rows: int, do_sample: bool, device: torch.device) -> Generators:
    """The call's source of randomness: what is given, and where nothing is sampled one that depends on nothing else.

    Raises:
        ValueError: a list or tuple of generators that are other in number than the rows.
    """
    generator = list(generator) if isinstance(generator, tuple) else generator
    if isinstance(generator, list) and len(generator) != num_rows:
        raise ValueError(f"`generator` has {len(generator)} generators for {num_rows} rows: give one, or one for each row.")
    if generator is None and not do_sample:
        # Noise guidance still draws noise: without sampling it must depend neither on global state nor on other rows.
        return [torch.Generator(device).manual_seed(0) for _ in range(num_rows)]
    return generator


__all__ = ["DrawingPlan", "VargptImageStreamer", "checked_generator", "guidance_of", "kept_codes", "schedule_ids_of"]
