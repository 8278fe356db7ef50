"""What a dataset holds, before anything is trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from ..processing.processing_vargpt import VargptProcessor
from .collator import pictures_of
from .packing import cut, parts_of_rows
from .readers import AnyDataset, name_of_picture, undecoded

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_BARS = 40


@dataclass
class DataReport:
    """What [`check_rows`] found.

    Args:
        rows: how many rows there are.
        images: pictures to understand.
        drawings: pictures to generate, codes among them.
        lengths: tokens of every row that the processor takes.
        broken: pictures that cannot be read, each with its row, its file and the cause.
        wrong: rows that the processor refuses, each with the cause.
        max_length: longest row that training takes whole; None for any.
        cut_tokens: what it cuts off longer rows.
        cut_pictures: how many pictures, of both kinds, go with them.
    """

    rows: int = 0
    images: int = 0
    drawings: int = 0
    lengths: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    max_length: int | None = None
    cut_tokens: int = 0
    cut_pictures: int = 0

    @property
    def too_long(self) -> int:
        """Rows of more than `max_length` tokens."""
        return 0 if self.max_length is None else sum(length > self.max_length for length in self.lengths)

    @property
    def is_clean(self) -> bool:
        """Whether training can take every row whole."""
        return not (self.broken or self.wrong or self.too_long)

    def quantiles(self) -> dict[float, int]:
        """Tokens of rows at `QUANTILES`; {} without rows."""
        return {share: int(np.quantile(self.lengths, share, method="nearest")) for share in QUANTILES} if self.lengths else {}

    def __str__(self) -> str:
        shown = {0.0: "least", 0.5: "median", 1.0: "most"}
        quantiles = ", ".join(f"{shown.get(share, f'{share:.0%}')} {length:,}" for share, length in self.quantiles().items())
        lines = [
            f"rows                     {self.rows:,}",
            f"pictures to understand   {self.images:,}",
            f"pictures to generate     {self.drawings:,}",
            f"tokens                   {sum(self.lengths):,}",
            f"tokens of a row          {quantiles}",
        ]
        if self.max_length is not None:
            cut_off = f" (training cuts {self.cut_tokens:,} tokens off, and with them {self.cut_pictures:,} pictures)" if self.too_long else ""
            lines.append(f"longer than {self.max_length:<13,}{self.too_long:,}{cut_off}")
        lines += [f"broken pictures          {len(self.broken):,}", *(f"  {line}" for line in self.broken[:20])]
        lines += [f"wrong rows               {len(self.wrong):,}", *(f"  {line}" for line in self.wrong[:20])]
        return "\n".join(lines)


def check_rows(rows: AnyDataset, processor: VargptProcessor, max_length: int | None = None) -> DataReport:
    """Opens every picture of every row and counts its tokens, as training would.

    Args:
        rows: see `to_rows`.
        processor: of the model that is to be trained.
        max_length: most tokens of a row that training will take.
    """
    report = DataReport(max_length=max_length)
    total = len(rows) if hasattr(rows, "__len__") else None
    for index, row in enumerate(tqdm(undecoded(rows), desc="Checking", unit=" rows", total=total)):  # a broken picture must not end the loop
        report.rows += 1
        pictures = {name: pictures_of(row, name) for name in ("images", "output_images", "output_image_codes")}
        report.images += len(pictures["images"])
        report.drawings += len(pictures["output_images"]) + len(pictures["output_image_codes"])
        broken = [
            f"row {index}, {name}[{number}], {name_of_picture(picture)}: {cause}"
            for name in ("images", "output_images")
            for number, picture in enumerate(pictures[name])
            if (cause := _cause(processor, picture))
        ]
        report.broken += broken
        if broken:
            continue
        try:
            inputs = processor.apply_chat_template(
                [row["messages"]],
                tokenize=True,
                return_dict=True,
                processor_kwargs={name: [given] for name, given in pictures.items() if given},
            )
        except ValueError as error:
            report.wrong.append(f"row {index}: {error}")
            continue
        ids = torch.tensor(inputs["input_ids"])
        (whole,) = parts_of_rows(ids, [ids.shape[1]], processor)
        report.lengths.append(whole.length)
        if max_length is not None:
            kept = cut(whole, ids[0], max_length, processor)
            report.cut_tokens += whole.length - kept.length
            report.cut_pictures += len(whole.images) + len(whole.drawings) - len(kept.images) - len(kept.drawings)
    return report


def _cause(processor: VargptProcessor, picture: Any) -> str | None:
    """Why a picture cannot be read, or None."""
    try:
        processor.image_processor.fetch_images(picture)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def draw_lengths(lengths: Sequence[int], file: str | Path, max_length: int | None = None) -> None:
    """Saves a picture of how many rows have how many tokens; a red line stands at `max_length`.

    Raises:
        ValueError: no lengths.
    """
    if not lengths:
        raise ValueError("There are no rows whose lengths could be drawn.")
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(lengths, bins=_BARS, color="steelblue")
    if max_length is not None:
        axes.axvline(max_length, color="red", label=f"max_length {max_length:,}")
        axes.legend()
    axes.set(title=f"{len(lengths):,} rows", xlabel="tokens", ylabel="rows")
    figure.savefig(file, dpi=120)
