"""What a dataset holds, before anything is trained on it."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from ..processing.processing_vargpt import VargptProcessor
from .collator import listed
from .packing import cut, parts_of_rows
from .readers import AnyDataset, cause_in_words, name_of_image, name_of_row, undecoded

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_BARS = 40


@dataclass
class DataReport:
    """What [`check_rows`] found.

    Args:
        rows: how many rows there are.
        images: images to read.
        drawings: images to draw, codes among them.
        lengths: tokens of every row that the processor takes.
        unread: rows whose columns make no row for training, each with its file, row and cause.
        broken: images that cannot be read, each with its row, its file and the cause.
        wrong: rows that the processor refuses, each with the cause.
        max_length: longest row that training takes whole; None for any.
        cut_tokens: what it cuts off longer rows.
        cut_images: how many images, of both kinds, go with them.
    """

    rows: int = 0
    images: int = 0
    drawings: int = 0
    lengths: list[int] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    max_length: int | None = None
    cut_tokens: int = 0
    cut_images: int = 0

    @property
    def too_long(self) -> int:
        """Rows of more than `max_length` tokens."""
        return 0 if self.max_length is None else sum(length > self.max_length for length in self.lengths)

    @property
    def is_clean(self) -> bool:
        """Whether training can take every row whole, and there is one."""
        return bool(self.rows) and not (self.unread or self.broken or self.wrong or self.too_long)

    def quantiles(self) -> dict[float, int]:
        """Tokens of rows at `QUANTILES`; {} without rows."""
        return {share: int(np.quantile(self.lengths, share, method="nearest")) for share in QUANTILES} if self.lengths else {}

    def kinds(self) -> dict[str, int]:
        """How often each kind of fault occurs, the most frequent first; of one kind are those whose words differ in names and numbers alone."""
        return dict(Counter(map(_kind_of, [*self.unread, *self.broken, *self.wrong])).most_common())

    def __str__(self) -> str:
        shown = {0.0: "least", 0.5: "median", 1.0: "most"}
        quantiles = ", ".join(f"{shown.get(share, f'{share:.0%}')} {length:,}" for share, length in self.quantiles().items())
        lines = [
            f"rows                     {self.rows:,}",
            f"images to read           {self.images:,}",
            f"images to draw           {self.drawings:,}",
            f"tokens                   {sum(self.lengths):,}",
            f"tokens of a row          {quantiles}",
        ]
        if self.max_length is not None:
            cut_off = f" (training cuts {self.cut_tokens:,} tokens off, and with them {self.cut_images:,} images)" if self.too_long else ""
            lines.append(f"longer than {self.max_length:<13,}{self.too_long:,}{cut_off}")
        for name, faults in (("rows that cannot be read", self.unread), ("broken images", self.broken), ("wrong rows", self.wrong)):
            lines += [f"{name:<25}{len(faults):,}", *(f"  {line}" for line in faults)]
        if kinds := self.kinds():
            lines += ["faults by kind", *(f"  {count:,} x {kind}" for kind, count in kinds.items())]
        return "\n".join(lines)


def _kind_of(fault: str) -> str:
    """A fault without the names and numbers in it."""
    cause = fault.split(": ", 1)[-1]
    cause = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", cause)
    return re.sub(r"\d[\d,.]*(?=\W|$)", "N", cause)


def check_rows(
    rows: AnyDataset, processor: VargptProcessor, max_length: int | None = None, name: str | None = None, report: DataReport | None = None
) -> DataReport:
    """Goes through all rows, opens every image and counts tokens, as training would; lists every fault.

    Args:
        rows: see `to_rows`; with its `keep_faults`, rows that it cannot read are listed, too, instead of ending the check.
        processor: of the model that is to be trained.
        max_length: most tokens of a row that training will take.
        name: what to call the dataset where it stands beside others; None for none.
        report: to which to add; a new one by default.
    """
    report = DataReport(max_length=max_length) if report is None else report
    where = "" if name is None else f" of {name}"
    total = len(rows) if hasattr(rows, "__len__") else None
    for index, row in enumerate(tqdm(_every(undecoded(rows)), desc="Checking", unit=" rows", total=total)):
        report.rows += 1
        if isinstance(row, Exception) or row.get("fault"):
            report.unread.append(f"{name_of_row(index, name)}: {cause_in_words(row)}" if isinstance(row, Exception) else row["fault"])
            continue
        images = {column: listed(row, column) for column in ("images", "output_images", "output_image_codes")}
        report.images += len(images["images"])
        report.drawings += len(images["output_images"]) + len(images["output_image_codes"])
        broken = [
            f"row {index}{where}, {column}[{number}], {name_of_image(image)}: {cause}"
            for column in ("images", "output_images")
            for number, image in enumerate(images[column])
            if (cause := _cause(processor, image))
        ]
        report.broken += broken
        if not broken:
            given = {name: [of_row] for name, of_row in images.items() if of_row}
            schedules = listed(row, "output_image_schedule_ids")
            if schedules and len(schedules) == len(images["output_image_codes"]):
                given["output_image_schedule_ids"] = schedules
            _measure(row["messages"], given, processor, report, f"row {index}{where}")
    return report


def _every(rows: AnyDataset) -> Iterator[dict[str, Any] | Exception]:
    """All rows; an error in place of one that cannot be read, after which a stream ends."""
    if isinstance(rows, Dataset):
        for index in range(len(rows)):
            try:
                yield rows[index]
            except Exception as error:  # of whatever kind: the next row may be in order
                yield error
        return
    found = iter(rows)
    while True:
        try:
            yield next(found)
        except StopIteration:
            return
        except Exception as error:
            yield error
            return


def _measure(messages: list[Any], given: dict[str, list[Any]], processor: VargptProcessor, report: DataReport, row_name: str) -> None:
    """Adds the length of a row with such images, as the processor takes them, and what training would cut off it."""
    try:
        inputs = processor.apply_chat_template(
            [messages],
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_image_spans": True, **given},
        )
    except Exception as error:  # all faults are listed, of whatever kind
        report.wrong.append(f"{row_name}: {cause_in_words(error)}")
        return
    (whole,) = parts_of_rows(inputs, [len(inputs["input_ids"][0])])
    report.lengths.append(whole.length)
    if report.max_length is not None:
        kept = cut(whole, inputs, report.max_length)
        report.cut_tokens += whole.length - kept.length
        report.cut_images += len(whole.images) + len(whole.drawings) - len(kept.images) - len(kept.drawings)


def _cause(processor: VargptProcessor, image: Any) -> str | None:
    """Why an image cannot be read, or None."""
    try:
        processor.output_image_processor.fetch_images(image, "it")
    except Exception as error:
        return cause_in_words(error)
    return None


def draw_lengths(lengths: Sequence[int], file: str | Path, max_length: int | None = None) -> None:
    """Saves an image of how many rows have how many tokens; a red line stands at `max_length`.

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
