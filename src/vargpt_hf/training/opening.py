"""Datasets where they are stored: files, folders, the Hub. See `rows` for the forms of their rows."""

import json
import logging
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape, glob
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from PIL import Image as PILImage

AnyDataset = Dataset | IterableDataset
# Columns of rows that are still JSON: the text, where it stands, what is wrong with it as JSON; and one of files that speak of codes.
ROW, LOCATION, FAULT, CODED = "__row__", "__location__", "__fault__", "__coded__"
JSON_FEATURES = Features({ROW: Value("large_string"), LOCATION: Value("string"), FAULT: Value("string")})

_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow", ".tar": "webdataset"}
_ORDER = (".tar", ".parquet", ".arrow", ".jsonl", ".json")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_logger = logging.getLogger(__name__)


def open_dataset(path: str | Path, split: str | None = None, streaming: bool = False) -> tuple[AnyDataset, Path]:
    """A dataset, its columns as they are, and the folder to which paths of images in it are relative.

    Rows of .json and .jsonl files stay JSON, each a text in the column `__row__`: no schema is guessed of them, so that a column may come
    late, and hold one thing in one row and another in the next.

    Args:
        path: a folder that `Dataset.save_to_disk` wrote; a file or a pattern of files that end in .parquet, .json, .jsonl, .arrow or .tar
            (WebDataset); a folder of such files; a folder of images (with captions in metadata.jsonl or metadata.csv, or in a .txt, or in
            img2dataset's .json, beside each image); or the id of a dataset on the Hub. In a folder of both, images with texts beside
            them are taken, and a log line says so.
        split: which split, where there are several; "train" by default.
        streaming: read rows one after the other instead of all ahead.

    Raises:
        ValueError: nothing there that can be read so, or several splits and none chosen.
        OSError: files that cannot be opened.
    """
    path = check_data_path(path)
    with in_words(path):
        if isinstance(path, str):
            return _load_from_hub(path, split, streaming), Path()
        path = path.absolute()  # paths of images are stored, and may be opened from elsewhere
        if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
            return _choose_split(load_from_disk(str(path)), split, path, streaming), path
        files = _choose_files(path) if path.is_dir() else _files_of(path)
        if not files:
            return _open_image_folder(path, split, streaming), path
        folder = path if path.is_dir() else path.parent
        kind = _FORMATS[Path(files[0]).suffix]
        if kind == "json":
            return _open_json(files, streaming), folder
        return load_dataset(kind, data_files=[escape(file) for file in files], split="train", streaming=streaming), folder


def _load_from_hub(path: str, split: str | None, streaming: bool) -> AnyDataset:
    try:
        return load_dataset(path, split=split or "train", streaming=streaming)
    except OSError as error:
        raise ValueError(f"There is no file or folder {path} here, and on the Hub no such dataset can be read: {error}.") from error


def check_data_path(path: str | Path) -> Path | str:
    """The path, or the Hub id as text, if `open_dataset` can read such a one; else raises a ValueError."""
    found = Path(path)
    if found.is_dir() or _files_of(found):
        return found
    if not found.exists() and _HUB_ID.fullmatch(str(path)) and found.suffix not in _FORMATS:
        return str(path)
    raise ValueError(
        f"There is no dataset at {path}: give a folder written by `Dataset.save_to_disk`, a folder of images, files that end in "
        f"{', '.join(_FORMATS)}, or a Hub id."
    )


def _files_of(path: Path) -> list[str]:
    """The data file at a path, which may have brackets in its name, or those that it is a pattern of, in order."""
    files = [str(path)] if path.is_file() else glob(str(path))
    return sorted(file for file in files if Path(file).suffix in _FORMATS)


@contextmanager
def in_words(name: Any) -> Iterator[None]:
    """Around what libraries read: their errors become a ValueError that names the dataset and the cause, or stay an OSError.

    Raises:
        ValueError: in place of a library's error, and of our own that name the dataset or a row, as they are.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ is not None else error
        if type(cause) in (ValueError, TypeError) and (str(name) in str(cause) or str(cause).startswith("Row ")):
            raise cause from cause.__cause__
        cause = first_cause(error)
        if isinstance(cause, OSError):
            raise cause from error
        said = str(cause) if type(cause) is ValueError else f"{type(cause).__name__}: {cause}"
        raise ValueError(f"The dataset {name} cannot be read: {' '.join(said.split())[:500]}") from error


def first_cause(error: BaseException) -> BaseException:
    """What an error was raised from, at its root."""
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = cause
    return error


def data_files_in(folder: Path) -> list[str]:
    """Data files of one kind in a folder, in order; images and what stands beside them do not count."""
    return _survey(folder)[0]


def _choose_files(folder: Path) -> list[str]:
    """The folder's data files, or none, where its images have captions beside them."""
    files, images, captioned = _survey(folder)
    if captioned and files:
        _logger.warning(
            "%s holds %d images with captions beside them, which are taken, and %d files such as %s, which are not: name these to take them.",
            folder, captioned, len(files), Path(files[0]).name,
        )  # fmt: skip
        return []
    return files


def _survey(folder: Path) -> tuple[list[str], int, int]:
    """The data files of a folder's first kind, how many images it has, and how many of these have a caption beside them."""
    found: dict[str, list[Path]] = {}
    endings = PILImage.registered_extensions()
    for file in folder.rglob("*"):  # once: there may be a million images
        suffix = file.suffix if file.suffix in (*_FORMATS, ".txt") else "image" if file.suffix.lower() in endings else None
        if suffix is not None and file.name != "metadata.jsonl":
            found.setdefault(suffix, []).append(file)
    images = {file.with_suffix("") for file in found.get("image", ())}
    beside = {suffix: {file.with_suffix("") for file in found.get(suffix, ())} & images for suffix in (".txt", ".json")}
    found[".json"] = [file for file in found.get(".json", ()) if file.with_suffix("") not in beside[".json"] and not _is_statistics(file)]
    files = next((sorted(map(str, found[suffix])) for suffix in _ORDER if found.get(suffix)), [])
    return files, len(images), len(beside[".txt"] | beside[".json"])


def _is_statistics(file: Path) -> bool:
    """Whether img2dataset wrote a file to say how a download went."""
    return re.fullmatch(r"\d+_stats", file.stem) is not None


def _choose_split(found: Dataset | DatasetDict, split: str | None, path: Path, streaming: bool) -> AnyDataset:
    if isinstance(found, DatasetDict):
        if split is None and "train" not in found or split is not None and split not in found:
            raise ValueError(f"{path} holds the splits {', '.join(found)}: choose one of them, not {split!r}.")
        found = found[split or "train"]
    return found.to_iterable_dataset() if streaming else found


def _open_image_folder(path: Path, split: str | None, streaming: bool) -> AnyDataset:
    """A folder of images; captions stand in `datasets`' metadata files, or in a file beside each image."""
    if any(path.rglob("metadata.*")):
        return load_dataset("imagefolder", data_dir=escape(str(path)), split=split or "train", streaming=streaming)
    images = sorted(file for file in path.rglob("*") if file.suffix.lower() in PILImage.registered_extensions())
    if not images:
        raise ValueError(f"{path} holds neither data files ({', '.join(_FORMATS)}) nor images.")
    texts = [_caption_beside(file) for file in images]
    if missing := [file for file, text in zip(images, texts) if text is None]:
        raise ValueError(
            f"{len(missing)} of {len(images)} images in {path} have no caption, the first is {missing[0]}: put a text file of the "
            "same name beside each, or one metadata.jsonl with `file_name` and `text`."
        )
    features = Features({"image": Image(), "text": Value("string")})
    rows = Dataset.from_dict({"image": [str(file) for file in images], "text": texts}, features=features)
    return rows.to_iterable_dataset() if streaming else rows


def _caption_beside(image: Path) -> str | None:
    """What an image's .txt says, or else the `caption` of its .json."""
    try:
        if (file := image.with_suffix(".txt")).is_file():
            return file.read_text(encoding="utf-8").strip()
        if (file := image.with_suffix(".json")).is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            return found.get("caption") if isinstance(found, dict) and isinstance(found.get("caption"), str) else None
    except ValueError as error:
        raise ValueError(f"The caption {file} cannot be read: {error}.") from None
    return None


def _open_json(files: list[str], streaming: bool) -> AnyDataset:
    # A file's time and size tell `datasets`, which keeps what it has read, when it is another one.
    stamped = [(file, (stat := Path(file).stat()).st_mtime_ns, stat.st_size) for file in files]
    features = JSON_FEATURES
    if any(_has_codes(file) for file in files):
        features = Features({**features, CODED: Value("bool")})
    make = IterableDataset.from_generator if streaming else Dataset.from_generator
    return make(_json_rows, features=features, gen_kwargs={"files": stamped, "columns": tuple(features)})


def _has_codes(file: str) -> bool:
    """Whether a JSON file speaks of codes anywhere; what columns its rows have is known only when all have been read."""
    if Path(file).stat().st_size == 0:
        return False
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in (b'"output_image_codes"', b'"codes"'))


def _json_rows(files: list[tuple[str, int, int]], columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of files as texts, each with its file and line and with what is wrong with it as JSON."""
    for file, _, _ in files:
        rows = _lines(file) if Path(file).suffix == ".jsonl" else _elements(file)
        for index, (where, text, fault) in enumerate(rows):
            row = {ROW: text, LOCATION: f"Row {index} of {file}{where}", FAULT: fault, CODED: True}
            yield {name: row[name] for name in columns}


def _lines(file: str) -> Iterator[tuple[str, str, str | None]]:
    """The lines of a .jsonl that are not blank, as (where, text, fault)."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            text, fault = _decoded(line)
            if text.strip():
                yield f" (line {number})", text, fault


def _decoded(content: bytes) -> tuple[str, str | None]:
    try:
        return content.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        return content[: error.start].decode("utf-8-sig", "replace") or "?", f"it is not UTF-8: {error.reason} at byte {error.start}."


def _elements(file: str) -> Iterator[tuple[str, str, str | None]]:
    """The elements of a JSON array, or of the array in an object; or one JSON text after the other; as (where, text, fault)."""
    text, fault = _decoded(Path(file).read_bytes())
    if fault:
        yield "", "", fault
        return
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,]*")
    position = space.match(text).end()
    is_array = text.startswith("[", position)
    if not is_array and (found := _array_in(text)) is not None:
        yield from (("", json.dumps(row), None) for row in found)
        return
    position = space.match(text, position + is_array).end()
    while position < len(text) and not text.startswith("]", position):
        try:
            _, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield "", "", f"it is not JSON: {error} (here: {text[position : position + 40]!r})."
            return
        yield "", text[position:end], None
        position = space.match(text, end).end()
    if is_array and not text.startswith("]", position):
        yield "", "", "the file ends before its array does: it was cut short."


def _array_in(text: str) -> list[Any] | None:
    """The rows of a file that is one object: its only list of objects (such as "data"), or else itself; None of any other text."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None
    lists = [value for value in whole.values() if isinstance(value, list)] if isinstance(whole, dict) else []
    rows = [value for value in lists if value and all(isinstance(row, dict) for row in value)]
    is_table = len(rows) == 1 and not {"messages", "conversations", "prompt"} & set(whole)
    return rows[0] if is_table else [whole]
