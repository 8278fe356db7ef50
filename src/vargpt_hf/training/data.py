"""Datasets on disk → rows of conversations: `{"messages", "images", "output_images" | "image_codes"}`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_dataset, load_from_disk

from .collator import texts_of

if TYPE_CHECKING:
    from ..processing.processing_vargpt import VargptProcessor

_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_MARKS = {"<image>": "image", "<image_gen>": "image_gen"}
_PICTURES = List(Image())
_MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
ROW_FEATURES = Features({"messages": _MESSAGES, "images": _PICTURES, "output_images": _PICTURES})


def load_rows(path: str | Path) -> Dataset:
    """The rows of a folder that `Dataset.save_to_disk` wrote, or of a parquet, JSON or Arrow file.

    Messages hold parts, or plain texts as in the released data: there `<image>` marks a picture to understand and `<image_gen>` one
    to generate, and `images` lists both in the order of their marks. Paths of pictures are relative to the file.

    Raises:
        ValueError: a path that does not exist or holds something else, rows without messages, or marks and pictures that
            differ in number.
    """
    path = check_data_path(path)
    if path.is_dir():
        rows, folder = load_from_disk(str(path)), path
    else:
        rows, folder = load_dataset(_FORMATS[path.suffix], data_files=str(path), split="train"), path.parent
    if isinstance(rows, DatasetDict):
        raise ValueError(f"{path} holds the splits {', '.join(rows)}: give the folder of one of them.")
    if "messages" not in rows.column_names:
        raise ValueError(f"Rows of {path} have no column 'messages', only {', '.join(rows.column_names)}.")
    for column in {"images", "output_images"} & set(rows.column_names):
        rows = _with_pictures(rows, column, folder)
    if _has_plain_texts(rows):
        rows = _from_marks(rows)
    if "images" not in rows.column_names:  # TRL looks for this column in the first row to tell a vision dataset
        rows = rows.add_column("images", [[]] * len(rows))
    return rows


def check_data_path(path: str | Path) -> Path:
    """The path, if `load_rows` can read such a one; else raises a ValueError."""
    path = Path(path)
    if not path.is_dir() and not (path.suffix in _FORMATS and path.is_file()):
        raise ValueError(
            f"There is no dataset at {path}: give a folder written by `Dataset.save_to_disk`, or a file that ends in {', '.join(_FORMATS)}."
        )
    return path


def _with_pictures(rows: Dataset, column: str, folder: Path) -> Dataset:
    """The rows with a column of paths, or of bytes as parquet has them, as pictures; opened when they are read."""
    feature = rows.features[column]
    if feature == List(Value("string")):

        def resolve(paths: list[str] | None) -> dict[str, list[str]]:
            return {column: [path if "://" in path else str(folder / path) for path in paths or []]}

        rows = rows.map(resolve, input_columns=column)
    if feature in (_PICTURES, List(Value("null")), Value("null")):
        return rows
    return rows.cast_column(column, _PICTURES)


def _has_plain_texts(rows: Dataset) -> bool:
    messages = rows.features["messages"]
    return isinstance(messages, List) and isinstance(messages.feature, dict) and messages.feature.get("content") == Value("string")


def _from_marks(rows: Dataset) -> Dataset:
    """The rows with marks in their texts as rows of parts, and their pictures sorted by kind."""
    if "output_images" in rows.column_names:
        raise ValueError("Rows whose texts have marks list all pictures in `images`; they have `output_images` as well.")
    if "images" not in rows.column_names:
        rows = rows.add_column("images", [[]] * len(rows))
    if rows.features["images"] == _PICTURES:
        rows = rows.cast_column("images", List(Image(decode=False)))  # moved as they are
    features = Features({**rows.features, **ROW_FEATURES})
    return rows.map(_row_of_marks, with_indices=True, features=features)


def _row_of_marks(row: dict[str, Any], index: int) -> dict[str, Any]:
    """One row of `_from_marks`."""
    messages = [{"role": message["role"], "content": parts_of_text(message["content"] or "")} for message in row["messages"]]
    kinds = [part["type"] for message in messages for part in message["content"] if part["type"] != "text"]
    pictures = row["images"] or []
    if len(kinds) != len(pictures):
        raise ValueError(f"Row {index} has {len(kinds)} marks of pictures in its texts, but {len(pictures)} pictures.")
    sorted_pictures = {
        column: [picture for picture, found in zip(pictures, kinds) if found == kind]
        for column, kind in (("images", "image"), ("output_images", "image_gen"))
    }
    return {"messages": messages, **sorted_pictures}


def parts_of_text(text: str) -> list[dict[str, str | None]]:
    """The parts of a text with marks; line breaks next to a mark go, since the chat template sets its own."""
    parts: list[dict[str, str | None]] = []
    for piece in re.split(f"({'|'.join(map(re.escape, _MARKS))})", text.strip()):
        if piece in _MARKS:
            parts.append({"type": _MARKS[piece], "text": None})
        elif piece.strip("\n"):
            parts.append({"type": "text", "text": piece.strip("\n")})
    return parts


def add_lengths(rows: Dataset, processor: "VargptProcessor", column: str = "length") -> Dataset:
    """The rows with their lengths in tokens, to within what a chat template adds, for batches of rows of like length."""
    if column in rows.column_names:
        return rows
    places = {"image": processor.image_seq_length, "image_gen": processor.num_image_gen_tokens}

    def measure(batch: list[list[dict[str, Any]]]) -> dict[str, list[int]]:
        texts = processor.tokenizer([" ".join(texts_of(messages)) for messages in batch], add_special_tokens=False)["input_ids"]
        kinds = [[part["type"] for m in messages if not isinstance(m["content"], str) for part in m["content"]] for messages in batch]
        return {column: [len(ids) + sum(places.get(kind, 0) for kind in row) for ids, row in zip(texts, kinds)]}

    lengths = rows.select_columns("messages").map(
        measure, input_columns="messages", batched=True, remove_columns="messages", keep_in_memory=True
    )
    return rows.add_column(column, lengths[column][:])
