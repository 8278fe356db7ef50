"""Scale schedules: the grids of positions in which an image is drawn, coarse to fine (VAR, arXiv 2404.02905, section 3).

Shapes: N images, L positions of one image over all scales, l positions of one scale, S scales.
"""

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

LARGEST_SIDE = 2**13  # positions: far beyond any image that there is
VAR_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@dataclass(frozen=True)
class ScaleSchedule:
    """The grids of one kind of image, hashable, so that what follows from it can be cached by it.

    Args:
        grids: height and width of each scale in positions, coarse to fine; the last one is the latent grid. A grid may come again: such a
            scale codes what the one before it left.

    Raises:
        ValueError: no grids, a side below 1, or a grid that is smaller than the one before it.
    """

    grids: tuple[tuple[int, int], ...]

    def __post_init__(self):
        shrinking = any(a[0] > b[0] or a[1] > b[1] for a, b in zip(self.grids, self.grids[1:]))
        sides = [side for grid in self.grids for side in grid]
        if not sides or min(sides) < 1 or max(sides) > LARGEST_SIDE or shrinking:
            raise ValueError(
                f"A scale schedule needs (height, width) grids from 1 or more to {LARGEST_SIDE} at most, coarse to fine, none of them smaller "
                f"than the one before; got {self.grids}."
            )

    @classmethod
    def of(cls, scales: "Iterable[int | Sequence[int]] | ScaleSchedule") -> "ScaleSchedule":
        """The schedule of grids (height, width), or of the side lengths of square ones.

        Raises:
            ValueError: an entry that is neither a whole number nor a pair of them, or what the class itself refuses.
        """
        if isinstance(scales, ScaleSchedule):
            return scales
        grids = []
        for scale in scales:
            grid = (scale, scale) if isinstance(scale, int) and not isinstance(scale, bool) else scale
            if not (isinstance(grid, (list, tuple)) and len(grid) == 2 and all(type(side) is int for side in grid)):
                raise ValueError(f"A scale is the side of a square grid or a pair (height, width), both whole numbers; got {scale!r}.")
            grids.append(tuple(grid))
        return cls(tuple(grids))

    def to_list(self) -> list[int] | list[list[int]]:
        """What [`of`] takes, in the form that configurations save: sides where every grid is square, else pairs."""
        if all(height == width for height, width in self.grids):
            return [height for height, _ in self.grids]
        return [list(grid) for grid in self.grids]

    def __len__(self) -> int:
        """Number of scales S."""
        return len(self.grids)

    @property
    def areas(self) -> tuple[int, ...]:
        """Positions l of each scale."""
        return tuple(height * width for height, width in self.grids)

    @property
    def num_positions(self) -> int:
        """Positions L of one image over all scales."""
        return sum(self.areas)

    @property
    def final_grid(self) -> tuple[int, int]:
        """Height and width of the last scale, which is the latent grid."""
        return self.grids[-1]

    @property
    def aspect_ratio(self) -> float:
        """Height over width of the last scale."""
        return self.final_grid[0] / self.final_grid[1]

    def split(self, values: torch.Tensor, dim: int = 1) -> tuple[torch.Tensor, ...]:
        """Values of all L positions along `dim`, cut into those of each scale."""
        return values.split(list(self.areas), dim=dim)

    def scale_of_position(self, device: torch.device | str | None = None) -> torch.LongTensor:
        """Scale of each of the L positions, (L,): 0 1 1 1 1 2 2 … for grids 1×1, 2×2, 3×3, …"""
        areas = torch.tensor(self.areas, device=device)
        return torch.repeat_interleave(torch.arange(len(self), device=device), areas, output_size=self.num_positions)

    def loss_weights(self, power: float, device: torch.device | str | None = None) -> torch.Tensor:
        """Weights (L,) of the positions, (area of the last scale / area of the position's) ** power over their mean; float32."""
        areas = torch.tensor(self.areas, dtype=torch.float32, device=device)[self.scale_of_position(device)]
        weights = (self.areas[-1] / areas) ** power
        return weights / weights.mean()


@lru_cache
def schedules_of(schedules: tuple) -> tuple[ScaleSchedule, ...]:
    """The schedules of a configuration, made once for each list of them."""
    return tuple(ScaleSchedule.of(scales) for scales in schedules)


def position_weights(schedules: Sequence[ScaleSchedule], schedule_ids: torch.LongTensor, power: float) -> torch.Tensor:
    """Weights (N, L) of the positions of N images, [`ScaleSchedule.loss_weights`] of each one's schedule, 1 behind its own positions."""
    if len(schedules) == 1 or not len(schedule_ids):
        return schedules[0].loss_weights(power, schedule_ids.device).expand(len(schedule_ids), -1)
    present, which = schedule_ids.unique(return_inverse=True)
    weights = [schedules[index].loss_weights(power, schedule_ids.device) for index in present.tolist()]
    return torch.nn.utils.rnn.pad_sequence(weights, batch_first=True, padding_value=1.0)[which]


def nearest_schedule(schedules: Sequence[ScaleSchedule], height: float, width: float) -> int:
    """Index of the schedule whose images come nearest to `height` × `width`: first in aspect ratio, then in area.

    Args:
        height, width: in any unit that the areas of final grids are measured in, such as positions.

    Raises:
        ValueError: a side that is not positive.
    """
    if not (height > 0 and width > 0):
        raise ValueError(f"An image has a positive height and width, got {height} and {width}.")

    def distance(index: int) -> tuple[float, float]:
        schedule = schedules[index]
        return abs(schedule.aspect_ratio - height / width), abs(schedule.areas[-1] - height * width)

    return min(range(len(schedules)), key=distance)


def choose_schedules(
    schedules: Sequence[ScaleSchedule],
    num_rows: int,
    size: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
    aspect_ratio: float | Sequence[float] | None = None,
    unit: int = 1,
) -> list[int]:
    """Index of the schedule of each row's images: the one nearest to what was asked for, or the first of all.

    Args:
        num_rows: how many rows there are.
        size: (height, width) of all rows' images, or one for each row.
        aspect_ratio: in its place height / width, of all rows' images or one for each row; of schedules that are as near, the first.
        unit: of the sides of a size, in which a position has the side 1: pixels per position.

    Raises:
        TypeError: sides or ratios that are no numbers.
        ValueError: both at once, sides or ratios that are not positive and finite, or another number of them than of rows.
    """
    if size is not None and aspect_ratio is not None:
        raise ValueError("Give either `output_image_size` or `output_image_aspect_ratio`, not both.")
    if size is None and aspect_ratio is None:
        return [0] * num_rows
    name, kind = ("output_image_size", "(height, width)") if aspect_ratio is None else ("output_image_aspect_ratio", "height / width")
    given = size if aspect_ratio is None else aspect_ratio
    one_for_all = _is_number(given) if size is None else isinstance(given, (tuple, list)) and len(given) == 2 and all(map(_is_number, given))
    if not one_for_all and not isinstance(given, (tuple, list)):
        raise TypeError(f"`{name}` must be one {kind}, or a list with one for each row, got {given!r}.")
    wanted = [given] * num_rows if one_for_all else list(given)
    if len(wanted) != num_rows:
        kinds = "sizes" if aspect_ratio is None else "ratios"
        raise ValueError(f"`{name}` has {len(wanted)} {kinds} for {num_rows} rows: give one {kind}, or one for each row.")
    for each in wanted:
        sides = each if size is not None else [each]
        if not isinstance(sides, (tuple, list)) or len(sides) != (1 if size is None else 2) or not all(map(_is_number, sides)):
            raise TypeError(f"`{name}` must be one {kind}, or a list with one for each row; it has {each!r}.")
        if not all(0 < side < math.inf for side in sides):
            raise ValueError(f"`{name}` must be positive and finite, got {each!r}.")
    if size is not None:
        return [nearest_schedule(schedules, height / unit, width / unit) for height, width in wanted]
    distances = [[abs(schedule.aspect_ratio - ratio) for schedule in schedules] for ratio in wanted]
    return [each.index(min(each)) for each in distances]


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


__all__ = ["VAR_SIDES", "ScaleSchedule", "choose_schedules", "nearest_schedule", "position_weights", "schedules_of"]
