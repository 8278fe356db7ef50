"""Datasets and mixtures of them → rows of conversations for the trainer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from datasets import Dataset, Features, IterableDataset, Value, interleave_datasets

from .collator import ROW_NUMBER, texts_of
from .readers import (
    PREFERENCE_CODES_FEATURES,
    PREFERENCE_FEATURES,
    ROW_FEATURES,
    AnyDataset,
    check_data_path,
    open_dataset,
    to_pairs,
    to_rows,
    undecoded,
    with_constants,
)

if TYPE_CHECKING:
    from ..processing.processing_vargpt import VargptProcessor

# What rows have that were not encoded ahead, beside others that were.
EMPTY = {"output_image_codes": [], "output_image_schedule_ids": [], "image_tokenizer_fingerprint": None}
Source = TypeVar("Source")
STOPS = ("first_exhausted", "all_exhausted", "all_exhausted_without_replacement")


@dataclass(frozen=True)
class DataSource:
    """One dataset of a mixture, as a YAML file names it.

    Args:
        path: see `open_dataset`.
        weight: how often it is drawn from, against the others' weights.
        split: see `open_dataset`.
        images, task, prompt: see `to_rows`.
    """

    path: str
    weight: float = 1.0
    split: str | None = None
    images: str | None = None
    task: str = "draw"
    prompt: str | None = None

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(f"The weight of {self.path} must be positive, got {self.weight}.")

    def load(self, streaming: bool = False, keep_faults: bool = False) -> AnyDataset:
        """Its rows; see `to_rows`."""
        options = {"images": self.images, "task": self.task, "prompt": self.prompt, "keep_faults": keep_faults}
        return load_rows(self.path, self.split, streaming, **options)


def sources_of(given: str | Path | Sequence[str | dict[str, Any]], kind: type[Source] = DataSource) -> list[Source]:
    """The sources that a setting names: a path, or a list of paths and of mappings with the fields of `kind`, a dataclass with a `path`.

    Raises:
        ValueError: nothing named, unknown fields or values of the wrong kind, or paths where nothing is.
    """
    entries = [given] if isinstance(given, (str, Path)) else list(given or ())
    known = [field.name for field in fields(kind)]
    sources = []
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {"path": str(entry)}
        if "path" not in entry or set(entry) - set(known):
            raise ValueError(f"A source of data needs `path` and may have {', '.join(known[1:])}; got {', '.join(map(str, entry))}.")
        for field in fields(kind):
            value, is_number = entry.get(field.name, field.default), field.type is float
            if value is not field.default and (type(value) not in (int, float) if is_number else not isinstance(value, str)):
                raise ValueError(f"`{field.name}` of a source of data must be {'a number' if is_number else 'text'}, got {value!r}.")
        source = kind(**entry)
        check_data_path(source.path)
        sources.append(source)
    if not sources:
        raise ValueError("There is no source of data: name a path, or a list of them.")
    return sources


def names_of(sources: Sequence[DataSource]) -> list[str]:
    """What each source is called in logs: the last part of its path, with a number from 1 where several share it."""
    names = [Path(source.path).name for source in sources]
    return [f"{name}_{names[: index + 1].count(name)}" if names.count(name) > 1 else name for index, name in enumerate(names)]


def load_rows(path: str | Path, split: str | None = None, streaming: bool = False, **options) -> AnyDataset:
    """The rows of one dataset: [`open_dataset`], then [`to_rows`], whose options follow."""
    dataset, folder = open_dataset(path, split, streaming)
    return to_rows(dataset, folder, name=path, **options)


def load_pairs(source: DataSource) -> AnyDataset:
    """The pairs of answers of one dataset: [`open_dataset`], then [`to_pairs`]."""
    dataset, folder = open_dataset(source.path, source.split)
    return to_pairs(dataset, folder, name=source.path)


def mix_pairs(sources: Sequence[DataSource], seed: int = 0) -> AnyDataset:
    """Pairs of answers of several sources, drawn by their weights until all have been read; see [`mix_rows`]."""
    datasets = [load_pairs(source) for source in sources]
    if len(datasets) == 1:
        return datasets[0]
    known = {**PREFERENCE_FEATURES, **PREFERENCE_CODES_FEATURES}
    wanted = {name: feature for dataset in datasets for name, feature in dataset.features.items() if name in known}
    for index, dataset in enumerate(datasets):
        there = [name for name in wanted if name in dataset.features]
        absent = {name: (None if name == "image_tokenizer_fingerprint" else [], wanted[name]) for name in wanted if name not in there}
        datasets[index] = with_constants(dataset.select_columns(there), {"source": (index, Value("int32")), **absent})
    return _interleaved(datasets, sources, seed, "all_exhausted")


def _interleaved(datasets: list[AnyDataset], sources: Sequence[DataSource], seed: int, stop: str) -> AnyDataset:
    total = sum(source.weight for source in sources)
    return interleave_datasets(datasets, [source.weight / total for source in sources], seed=seed, stopping_strategy=stop)


def mix_rows(sources: Sequence[DataSource], seed: int = 0, streaming: bool = False, stop: str = "all_exhausted") -> AnyDataset:
    """Rows of several sources, drawn by their weights in an order that the seed fixes; of one source, as they are.

    Args:
        stop: when the mixture ends (`datasets.interleave_datasets`): "first_exhausted", when any source has been read;
            "all_exhausted", when all have, smaller ones several times; "all_exhausted_without_replacement", when all have, each row once.

    Returns:
        Rows with a column `source`, the index of their source, where there are several.

    Raises:
        ValueError: an unknown `stop`.
    """
    if stop not in STOPS:
        raise ValueError(f"`stop` is {stop!r}; it must be one of {', '.join(STOPS)}.")
    datasets = [source.load(streaming) for source in sources]
    if len(datasets) == 1:
        return datasets[0]
    encoded = {name: feature for dataset in datasets for name, feature in dataset.features.items() if name in EMPTY}
    for index, dataset in enumerate(datasets):
        added = {name: (EMPTY[name], feature) for name, feature in encoded.items() if name not in dataset.features}
        wanted = [*ROW_FEATURES, *encoded]
        dataset = dataset.select_columns([name for name in wanted if name in dataset.features])
        datasets[index] = with_constants(dataset, {"source": (index, Value("int32")), **added})
    return _interleaved(datasets, sources, seed, stop)


def describe_mixture(rows: Dataset, sources: Sequence[DataSource]) -> str:
    """How many rows of each source a mixture holds, for people."""
    counts = Counter(rows["source"]) if "source" in rows.column_names else {0: len(rows)}
    return "; ".join(f"{source.path}: {counts[index]:,} ({counts[index] / len(rows):.1%})" for index, source in enumerate(sources))


def numbered(rows: IterableDataset) -> IterableDataset:
    """Adds a column `row_number` to a stream: 0, 1, 2, … in order, so that a repeated row gets a new number each time.

    The collator draws what is random in a batch from these numbers.
    """
    features = Features({**rows.features, ROW_NUMBER: Value("int64")})
    return undecoded(rows).map(lambda row, index: {ROW_NUMBER: index}, with_indices=True).cast(features)


def add_lengths(rows: Dataset, processor: "VargptProcessor", column: str = "length") -> Dataset:
    """The rows with their lengths in tokens, to within what a chat template adds, for batches of rows of like length."""
    if column in rows.column_names:
        return rows

    def measure(batch: list[list[dict[str, Any]]]) -> dict[str, list[int]]:
        return {column: measure_rows(batch, processor)}

    lengths = rows.select_columns("messages").map(
        measure, input_columns="messages", batched=True, remove_columns="messages", keep_in_memory=True
    )
    return rows.add_column(column, lengths[column][:])


def measure_rows(conversations: Sequence[list[dict[str, Any]]], processor: "VargptProcessor") -> list[int]:
    """Tokens of each conversation, to within what a chat template adds."""
    lengths_of_kinds = processor.typical_lengths()
    texts = processor.tokenizer([" ".join(texts_of(messages)) for messages in conversations], add_special_tokens=False)["input_ids"]
    return [len(ids) + sum(lengths_of_kinds.get(kind, 0) for kind in kinds_of(messages)) for ids, messages in zip(texts, conversations)]


def kinds_of(messages: list[dict[str, Any]]) -> list[str]:
    """The types of all parts of a conversation, in reading order."""
    return [part["type"] for message in messages if not isinstance(message["content"], str) for part in message["content"]]


__all__ = [
    "ROW_FEATURES",
    "DataSource",
    "add_lengths",
    "describe_mixture",
    "kinds_of",
    "load_pairs",
    "load_rows",
    "measure_rows",
    "mix_pairs",
    "mix_rows",
    "sources_of",
]
