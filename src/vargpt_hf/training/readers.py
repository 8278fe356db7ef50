"""Datasets of rows in any form (see `rows`) → datasets of rows as they train, ahead and as streams."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, IterableDataset, List, Value

from .opening import CODED, FAULT, LOCATION, ROW, AnyDataset, check_data_path, data_files_in, first_cause, in_words, open_dataset
from .rows import PROMPTS, Row, can_be_read, read_pair, read_row, stored_image

_IMAGES = List(Image())
_UNREAD_IMAGES = List(Image(decode=False))
_MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
ROW_FEATURES = Features({"messages": _MESSAGES, "images": _IMAGES, "output_images": _IMAGES})
CODES = List(List(Value("int64")))  # 32 bits of a bitwise image tokenizer need the 33rd for the sign
# Columns of rows whose images were encoded ahead.
_KEPT = {"output_image_codes": CODES, "output_image_schedule_ids": List(Value("int32")), "image_tokenizer_fingerprint": Value("string")}
_TEXTS = {"prompt": _MESSAGES, "chosen": _MESSAGES, "rejected": _MESSAGES, "images": _IMAGES}
# The features of a dataset of pairs whose answers have images, or codes of such.
PREFERENCE_FEATURES = Features({**_TEXTS, "chosen_images": _IMAGES, "rejected_images": _IMAGES})
PREFERENCE_CODES_FEATURES = Features({**_TEXTS, "chosen_codes": CODES, "rejected_codes": CODES, "image_tokenizer_fingerprint": Value("string")})


def to_rows(
    dataset: AnyDataset | Sequence[Row],
    folder: Path = Path(),
    images: str | Path | None = None,
    task: str = "draw",
    prompt: str | None = None,
    name: str | Path | None = None,
    keep_faults: bool = False,
) -> AnyDataset:
    """Rows `{"messages", "images", "output_images"}`, of parts, from whatever the columns tell: see [`rows.read_row`].

    Images are opened when they are read. `output_image_codes` and what belongs to them (`vargpt encode`) are kept; so are whole
    numbers in `source` and `length`, which mixtures and batches of like lengths need; other columns go.

    Args:
        dataset: rows of any columns; also a list of dicts.
        folder: to which paths of images are relative.
        images: another folder, or parquet files with a column of images whose paths end in the names that rows have.
        task: of captioned images: "draw" them from their captions, or "describe" them in these.
        prompt: what the user says of a captioned image; "{}" stands for the caption where it is to be drawn.
        name: what to call the dataset in errors.
        keep_faults: add a column `fault`: what is wrong with a row, which then is an empty one, or None. By default it is raised.

    Raises:
        ValueError: an unknown task, columns of no known kind, or a row that cannot be read: names row, file and cause.
    """
    if task not in PROMPTS:
        raise ValueError(f"`task` is {task!r}; it must be one of {', '.join(PROMPTS)}.")
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return _rows_of_list(dataset, ROW_FEATURES, _KEPT, partial(read_row, find=_Finder(folder, images), task=task, prompt=prompt), name)
    with in_words(name or "given"):
        columns = set(dataset.column_names or next(iter(dataset), {}))
    features = undecoded(dataset).features or {}
    if images is None and _is_ready(features, ("messages", "images"), ("output_images", "output_image_codes")):  # nothing to copy
        added = {} if "output_images" in columns else {"output_images": ([], _IMAGES)}
        added |= {"fault": (None, Value("string"))} if keep_faults else {}
        return with_constants(dataset, added) if added else dataset
    if ROW not in columns and not can_be_read(columns):
        raise ValueError(
            f"The rows have the columns {', '.join(sorted(columns))}, of which none tells what to do. Known are `messages`, `prompt` and "
            "`completion`, `conversations`, or an image with a caption."
        )
    kept = _kept(dataset, columns)
    read = partial(read_row, find=_Finder(folder, images), task=task, prompt=prompt)
    return _mapped(dataset, columns, read, Features({**ROW_FEATURES, **kept}), name, keep_faults)


def to_pairs(dataset: AnyDataset | Sequence[Row], folder: Path = Path(), name: str | Path | None = None) -> AnyDataset:
    """Rows of pairs of answers, of parts, from whatever the columns tell: see [`rows.read_pair`].

    Raises:
        ValueError: a row that cannot be read: names row, file and cause.
    """
    codes = {name: PREFERENCE_CODES_FEATURES[name] for name in ("chosen_codes", "rejected_codes", "image_tokenizer_fingerprint")}
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return _rows_of_list(dataset, PREFERENCE_FEATURES, codes, partial(read_pair, find=_Finder(folder, None)), name)
    with in_words(name or "given"):
        columns = set(dataset.column_names or next(iter(dataset), {}))
    features = undecoded(dataset).features or {}
    drawn = (("chosen_images", "rejected_images"), ("chosen_codes", "rejected_codes"))
    if any(_is_ready(features, (*_TEXTS, *names), names) for names in drawn):
        return dataset
    kept = {name: feature for name, feature in codes.items() if name in columns or CODED in columns or _has_codes(features)}
    return _mapped(dataset, columns, partial(read_pair, find=_Finder(folder, None)), Features({**PREFERENCE_FEATURES, **kept}), name, False)


def for_trainer(dataset: Any, convert: Callable[[Any], AnyDataset]) -> Any:
    """What a trainer was given as its dataset, through [`to_rows`] or [`to_pairs`]; None and names stay, of a dict each value is converted."""
    if dataset is None or isinstance(dataset, (str, torch.utils.data.Dataset)) and not isinstance(dataset, (Dataset, IterableDataset)):
        return dataset  # a name is one of several evaluation datasets; other datasets of torch have no columns to look at
    if isinstance(dataset, Mapping):
        return {name: for_trainer(each, convert) for name, each in dataset.items()}
    # The images are opened by the processor, whose limits and checks then hold: of a stream in the collator, of other rows in `NamedRows`.
    return undecoded(convert(dataset))


def _is_ready(features: Mapping[str, Any], needed: Sequence[str], one_of: Sequence[str]) -> bool:
    """Whether rows are as they train, and no column of images besides is left unused."""
    known = {**ROW_FEATURES, **_KEPT, **PREFERENCE_FEATURES, **PREFERENCE_CODES_FEATURES}
    wanted = {name: _UNREAD_IMAGES if feature == _IMAGES else feature for name, feature in known.items()}
    has_all = all(features.get(name) == wanted[name] for name in needed) and any(name in features for name in one_of)
    others = [feature for name, feature in features.items() if name not in wanted]
    return (
        has_all
        and all(features[name] == wanted[name] for name in one_of if name in features)
        and not any(isinstance(feature, Image) or feature == _UNREAD_IMAGES for feature in others)
    )


def _kept(dataset: AnyDataset, columns: set[str]) -> dict[str, Any]:
    """The columns that stay as they are, with their features."""
    features = dataset.features or {}
    has_codes = CODED in columns or _has_codes(features)
    kept = {name: feature for name, feature in _KEPT.items() if name in columns or has_codes}
    whole = {name: features[name] for name in ("source", "length") if getattr(features.get(name), "dtype", "").startswith("int")}
    return kept | whole


def _has_codes(feature: Any) -> bool:
    """Whether parts of messages may carry codes."""
    if isinstance(feature, Mapping):
        return any(name == "codes" or _has_codes(each) for name, each in feature.items())
    return isinstance(feature, List) and _has_codes(feature.feature)


def _mapped(
    dataset: AnyDataset, columns: set[str], read: Callable[[Row], Row], features: Features, name: str | Path | None, keep_faults: bool
) -> AnyDataset:
    if keep_faults:
        features = Features({**features, "fault": Value("string")})
    convert = partial(_convert, read=read, features=features, name=name, keep_faults=keep_faults)
    options = {"with_indices": True, "remove_columns": sorted(columns)}
    dataset = undecoded(dataset)
    if isinstance(dataset, IterableDataset):  # whose `map` believes `features` and leaves images as they are
        # What a stream without features holds is known only of its first row: later ones may bring more columns.
        return dataset.map(convert, **options).select_columns(list(features)).cast(features)
    with in_words(name or "given"):
        return dataset.map(convert, features=features, **options)


def _convert(row: Row, index: int, read: Callable[[Row], Row], features: Features, name: str | Path | None, keep_faults: bool) -> Row:
    """One row of a dataset, with all columns of `features`."""
    row = dict(row)
    try:
        if ROW in row:
            if row[FAULT]:
                raise ValueError(row[FAULT])
            found = read(_parsed(row[ROW]))
        else:
            found = read(row)
        if late := [column for column in found if column not in features]:
            raise ValueError(f"it has {' and '.join(late)}, unlike the first row: give the dataset `features` with all its columns.")
    except Exception as error:  # whatever a row may raise: one error, with its file and row
        fault = f"{row.get(LOCATION) or name_of_row(index, name)}: {cause_in_words(error)}"
        if not keep_faults:
            raise ValueError(fault) from error
        return {column: [] if isinstance(feature, List) else None for column, feature in features.items()} | {"fault": fault}
    others = {column: row.get(column) for column in features if column not in found}
    return {
        **{column: value if value is not None or not isinstance(features[column], List) else [] for column, value in others.items()},
        **found,
    }


def _parsed(text: str) -> Row:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}.") from None


def name_of_row(index: int, name: str | Path | None) -> str:
    """Where a row stands, for people."""
    return f"Row {index}" if name is None else f"Row {index} of {name}"


def cause_in_words(error: Exception) -> str:
    """What an error says; with its kind, where it is none of ours."""
    cause = error if type(error) in (ValueError, TypeError) else first_cause(error)
    return str(cause) if type(cause) in (ValueError, TypeError) else f"{type(cause).__name__}: {cause}"


def _rows_of_list(
    rows: Sequence[Row], features: Features, codes: dict[str, Any], read: Callable[[Row], Row], name: str | Path | None
) -> Dataset:
    """A dataset of a list of dicts, whose columns and values may differ from row to row."""
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Sequence):
        raise TypeError(f"The rows are a {type(rows).__name__}; give a `datasets.Dataset`, an `IterableDataset` or a list of dicts.")
    features = Features({**features, **codes})
    found = [_convert(row if isinstance(row, Mapping) else {"": row}, index, read, features, name, False) for index, row in enumerate(rows)]
    if not any(row[column] for row in found for column in codes):
        features = Features({column: feature for column, feature in features.items() if column not in codes})
    return Dataset.from_list([{column: row[column] for column in features} for row in found], features=features)


def with_constants(dataset: AnyDataset, columns: dict[str, tuple[Any, Any]]) -> AnyDataset:
    """The dataset with columns of one value each, {name: (value, feature)}."""
    if isinstance(dataset, Dataset):
        for name, (value, feature) in columns.items():
            dataset = dataset.add_column(name, [value] * len(dataset), feature=feature)
        return dataset
    features = Features({**dataset.features, **{name: feature for name, (_, feature) in columns.items()}})
    return undecoded(dataset).map(lambda row: {name: value for name, (value, _) in columns.items()}).cast(features)


def undecoded(dataset: AnyDataset) -> AnyDataset:
    """The dataset whose images pass as bytes and paths, unopened."""
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(column, Image(decode=False))
        elif feature == _IMAGES:
            dataset = dataset.cast_column(column, List(Image(decode=False)))
    return dataset


def image_columns(dataset: AnyDataset) -> list[str]:
    """The columns of unopened images."""
    return [column for column, feature in (dataset.features or {}).items() if feature == _UNREAD_IMAGES]


def name_of_image(image: dict[str, Any]) -> str:
    """Where an unopened image lies, for people."""
    return image.get("path") or "in the data file"


class _Finder:
    """Makes of what a row has for an image, a path or bytes, one that can be opened from anywhere."""

    def __init__(self, folder: Path, images: str | Path | None):
        self.folder, self.rows, self.index = folder, None, {}
        if images is None:
            return
        if Path(images).is_dir() and not any(file.endswith((".parquet", ".arrow", ".tar")) for file in data_files_in(Path(images))):
            self.folder = Path(images).absolute()
            return
        rows, _ = open_dataset(images)
        column = next((name for name, feature in rows.features.items() if isinstance(feature, Image)), None)
        if column is None:
            known = ", ".join(name for name in rows.column_names if name not in (ROW, LOCATION, FAULT, CODED)) or "JSON"
            raise ValueError(f"{images} has no column of images, only {known}: give a folder of images, or parquet files of them.")
        self.rows = rows.select_columns(column).cast_column(column, Image(decode=False))
        paths = self.rows.flatten()[f"{column}.path"]  # without reading the images
        self.index: dict[str, list[tuple[int, Path]]] = {}
        for index, path in enumerate(paths):
            self.index.setdefault(Path(path or "").name, []).append((index, Path(path or "")))

    def __call__(self, image: Any) -> dict[str, Any]:
        stored = stored_image(image)
        if stored["path"] is None or "://" in stored["path"]:
            return stored
        if self.rows is None:
            return {"bytes": None, "path": str(self.folder / stored["path"])}
        path = Path(stored["path"])
        # ImageNet's parquet files on the Hub add the class to a name: n01440764/n01440764_36.JPEG is n01440764_36_n01440764.JPEG there.
        for name in (path.name, f"{path.stem}_{path.parent.name}{path.suffix}"):
            if name in self.index:
                (found,) = self.rows[_nearest(path.with_name(name), self.index[name])].values()
                return found
        raise ValueError(f"There is no image {path.name} in the parquet files of images.")


def _nearest(path: Path, stored: list[tuple[int, Path]]) -> int:
    """The position of the stored path that ends as this one does, by as many folders as possible, among those of one name.

    Raises:
        ValueError: several that end so alike.
    """
    ends = [sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path.parts[::-1], other.parts[::-1]))) for _, other in stored]
    best = [place for place, end in zip(stored, ends) if end == max(ends)]
    if len(best) > 1:
        raise ValueError(f"{len(best)} images in the parquet files of images are called {path.name}, and nothing says which {path} is.")
    return best[0][0]


__all__ = [
    "CODES",
    "PREFERENCE_CODES_FEATURES",
    "PREFERENCE_FEATURES",
    "ROW_FEATURES",
    "AnyDataset",
    "check_data_path",
    "name_of_image",
    "open_dataset",
    "image_columns",
    "to_pairs",
    "to_rows",
    "undecoded",
    "with_constants",
]
