"""Datasets on disk → rows of conversations: `{"messages", "images", "output_images" | "image_codes"}`."""

from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


def load_rows(path: str | Path) -> Dataset:
    """The rows of a folder that `Dataset.save_to_disk` wrote, or of a parquet, JSON or Arrow file.

    Raises:
        ValueError: a path that does not exist or holds something else, or rows without messages.
    """
    path = Path(path)
    if path.is_dir():
        rows = load_from_disk(str(path))
    elif path.suffix in _FORMATS and path.is_file():
        rows = load_dataset(_FORMATS[path.suffix], data_files=str(path), split="train")
    else:
        raise ValueError(
            f"There is no dataset at {path}: give a folder written by `Dataset.save_to_disk`, or a file that ends in {', '.join(_FORMATS)}."
        )
    if isinstance(rows, DatasetDict):
        raise ValueError(f"{path} holds the splits {', '.join(rows)}: give the folder of one of them.")
    if "messages" not in rows.column_names:
        raise ValueError(f"Rows of {path} have no column 'messages', only {', '.join(rows.column_names)}.")
    if "images" not in rows.column_names:  # TRL looks for this column in the first row to tell a vision dataset
        rows = rows.add_column("images", [[]] * len(rows))
    return rows
