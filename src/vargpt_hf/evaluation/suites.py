"""What every suite of evaluation gives, whatever it measures: metrics, values of single samples, examples, and what they were made of."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .intervals import Estimate


@dataclass(frozen=True)
class Example:
    """An image that a report shows.

    Attributes:
        name: of its file, without the ending.
        image: as drawn.
        caption: under it.
    """

    name: str
    image: Image.Image
    caption: str


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found.

    Attributes:
        metrics: by name.
        samples: of each sample its "id", its values in "metrics" by name, and what else tells it from others; by them models are compared.
        examples: images to show.
        data: "name", "sha256" and size of what was drawn from or asked about.
        seeds: of everything random, by name.
        settings: of the suite, those of `generate` among them.
        judge: who judged, where that was another model.
        notes: what a reader has to know, a sentence each.
        tables: more for the readable page, by heading: rows of cells, the first of them the header.
    """

    metrics: Mapping[str, Estimate]
    samples: Sequence[Mapping[str, Any]]
    data: Mapping[str, Any]
    seeds: Mapping[str, int]
    settings: Mapping[str, Any]
    examples: Sequence[Example] = ()
    judge: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()
    tables: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)


def values_by_metric(samples: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The values of all samples that have them, by metric."""
    found = defaultdict(list)
    for sample in samples:
        for name, value in sample["metrics"].items():
            found[name].append(value)
    return dict(found)


def data_hash(rows: Iterable[Any]) -> str:
    """SHA-256 of rows of JSON values, with images by their pixels."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=_of_image).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _of_image(value: Any) -> Any:
    if not isinstance(value, Image.Image):
        raise TypeError(f"A row holds a {type(value).__name__}, which is neither a JSON value nor an image.")
    return [value.mode, list(value.size), hashlib.sha256(value.tobytes()).hexdigest()]


__all__ = ["Example", "SuiteResult", "data_hash", "values_by_metric"]
