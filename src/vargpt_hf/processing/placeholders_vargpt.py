"""Placeholders of images in text: counted, written out, and found again after tokenization.

An image to draw is `start placeholder end` in text; the model gets as many placeholders as its schedule has positions. Images to read
have placeholders of the reader's own, which it writes out itself. A replacement is a dict as Transformers' processors give it: `type`, the
characters `span` in the text before and `new_span` in the text after.
"""

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class OutputImageTokens:
    """The tokens of images to draw: image-start, the placeholder of one position, image-end."""

    start: str
    placeholder: str
    end: str

    def __str__(self) -> str:
        return f"{self.start}{self.placeholder}{self.end}"

    @cached_property
    def pattern(self) -> re.Pattern:
        """Matches one image to draw, with any number of placeholders."""
        return re.compile(f"{re.escape(self.start)}(?:{re.escape(self.placeholder)})+{re.escape(self.end)}")

    def count(self, texts: Sequence[str]) -> list[list[int]]:
        """Placeholders of each image to draw, row by row; ValueError for tokens of such images that stand alone."""
        counts = []
        for index, row in enumerate(texts):
            found = [match[0].count(self.placeholder) for match in self.pattern.finditer(row)]
            forced = row.endswith(self.start)
            if (row.count(self.start) - forced, row.count(self.placeholder), row.count(self.end)) != (len(found), sum(found), len(found)):
                raise ValueError(
                    f"Row {index} of the text has a stray {self.start}, {self.placeholder} or {self.end}. An image to draw is {self}; a "
                    f"{self.start} alone may only end the text."
                )
            counts.append(found)
        return counts

    def check_lengths(self, placeholders: list[list[int]], lengths: list[list[int]]) -> None:
        """Raises unless each image to draw has one placeholder in the text, or all of its own, which may be as many as its `lengths` say."""
        expected = iter(lengths)
        for index, row in enumerate(placeholders):
            for found in row:
                if found not in (1, *(possible := next(expected))):
                    raise ValueError(
                        f"Row {index} of the text has an image to draw with {found} {self.placeholder}; expected 1, or all "
                        f"{' or '.join(map(str, possible))}."
                    )

    def write_out(self, texts: Sequence[str], lengths: Iterator[int]) -> tuple[list[str], list[list[dict]]]:
        """The texts with as many placeholders for each image as `lengths` say, in reading order, and the replacements of each row."""
        written, replacements = [], []
        for row in texts:
            pieces, of_row, last, gained = [], [], 0, 0
            for match in self.pattern.finditer(row):
                start, end = match.span()
                new = f"{self.start}{self.placeholder * next(lengths)}{self.end}"
                new_span = (start + gained, start + gained + len(new))
                of_row.append({"type": "output_image", "span": (start, end), "new_span": new_span, "text": match[0], "replacement": new})
                pieces += [row[last:start], new]
                gained += len(new) - (end - start)
                last = end
            written.append("".join([*pieces, row[last:]]))
            replacements.append(of_row)
        return written, replacements


def merge_replacements(drawn: list[dict], read: list[dict]) -> list[dict]:
    """Replacements of one row made one after the other, drawn images first, as if they had been made at once."""
    merged = []
    for entry in read:
        before = [other for other in drawn if other["new_span"][1] <= entry["span"][0]]
        shift = before[-1]["span"][1] - before[-1]["new_span"][1] if before else 0
        merged.append({**entry, "span": tuple(char + shift for char in entry["span"])})
    for entry in drawn:
        before = [other for other in read if other["span"][1] <= entry["new_span"][0]]
        shift = before[-1]["new_span"][1] - before[-1]["span"][1] if before else 0
        merged.append({**entry, "new_span": tuple(char + shift for char in entry["new_span"])})
    return sorted(merged, key=lambda entry: entry["span"])


def spans_before_to_after(spans: Sequence[tuple[int, int]], replacements: list[dict]) -> list[tuple[int, int]]:
    """Spans of characters in the text before replacements, as spans in the text after them."""
    ends = [entry["span"][1] for entry in replacements]
    gained = [0, *(entry["new_span"][1] - entry["span"][1] for entry in replacements)]
    return [tuple(char + gained[bisect.bisect_right(ends, char)] for char in span) for span in spans]


def token_spans(offsets: Any, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """First and last-but-one tokens of spans of characters, from the characters (T, 2) of each token; (0, 0) of what was cut off."""
    starts, ends = np.asarray(offsets).T
    found = []
    for first, last in spans:
        tokens = np.flatnonzero((starts < last) & (ends > first))
        found.append((int(tokens[0]), int(tokens[-1]) + 1) if len(tokens) else (0, 0))
    return found


def is_image(given: Any) -> bool:
    """Whether this is one image, and not a list or batch of them."""
    return not isinstance(given, (list, tuple))


def is_codes(given: Any) -> bool:
    """Whether these are the codes of one image, and not a list or batch of them."""
    if isinstance(given, (np.ndarray, torch.Tensor)):
        return given.ndim == 1
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"output_image_codes have a {type(given).__name__}; give lists, arrays or tensors of whole numbers.")
    return len(given) > 0 and not isinstance(given[0], (list, tuple, np.ndarray, torch.Tensor))


def split_rows(given: Any, is_one: Callable[[Any], bool]) -> tuple[list, list[int] | None]:
    """Images (or codes) as a flat list, and how many each row has: None if they did not come by row."""
    if given is None:
        return [], None
    if is_one(given):
        return [given], None
    singles = [is_one(element) for element in given]
    if all(singles):
        return list(given), None
    if any(singles):
        raise ValueError("Images must come either as one flat list or as one list for each row, not as a mixture.")
    return [one for row in given for one in row], [len(row) for row in given]


def in_rows(flat: list, counts: Sequence[int]) -> list[list]:
    """A flat list as one list for each row."""
    ends = np.cumsum([0, *counts]).tolist()
    return [flat[start:end] for start, end in zip(ends, ends[1:])]


def compare_counts(label: str, argument: str, placeholders: list[int], total: int, per_row: list[int] | None) -> None:
    """Raises `ValueError` unless texts have placeholders for as many images as are given.

    By row where the images came by row (`per_row`), else in `total`.
    """
    message = "the number of {} tokens in the prompts should be the same as the number of {}: there are {} and {}."
    if per_row is None:
        if sum(placeholders) != total:
            raise ValueError("In all, " + message.format(label, f"images in {argument}", sum(placeholders), total))
        return
    if len(per_row) != len(placeholders):
        raise ValueError(
            f"{argument} has {len(per_row)} rows, but there are {len(placeholders)} texts; "
            + message.format(label, f"images in {argument}", sum(placeholders), total)
        )
    for index, (expected, found) in enumerate(zip(placeholders, per_row, strict=True)):
        if expected != found:
            raise ValueError(f"In row {index}, " + message.format(label, f"images in {argument}", expected, found))
