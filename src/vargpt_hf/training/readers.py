"""Datasets as people have them → rows of conversations.

Where a dataset lies ([`open_dataset`]) and what its rows look like ([`to_rows`]) are two things; any of the one goes with any of the other.
"""

import re
from collections.abc import Callable
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, List, Value, load_dataset, load_from_disk
from PIL import Image as PILImage

_PICTURES = List(Image())
_MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
ROW_FEATURES = Features({"messages": _MESSAGES, "images": _PICTURES, "output_images": _PICTURES})
CODES = List(List(Value("int32")))
_KEPT = {"image_codes": CODES, "vq_fingerprint": Value("string")}  # columns of rows whose pictures were encoded ahead

_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow", ".tar": "webdataset"}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MARKS = {"<image>": "image", "<image_gen>": "image_gen"}
_ROLES = {"human": "user", "gpt": "assistant"}  # of LLaVA's conversations; others stay as they are
_PICTURE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
_CAPTION_COLUMNS = ("text", "caption", "txt", "prompt")

_PROMPTS = {"draw": "{}", "describe": "describe the picture"}

AnyDataset = Dataset | IterableDataset
Row = dict[str, Any]
Turns = tuple[list[Row], list[Any], list[Any] | None]


def open_dataset(path: str | Path, split: str | None = None, streaming: bool = False) -> tuple[AnyDataset, Path]:
    """A dataset, its columns as they are, and the folder to which paths of pictures in it are relative.

    Args:
        path: a folder that `Dataset.save_to_disk` wrote; a file or a pattern of files that end in .parquet, .json, .jsonl, .arrow or .tar
            (WebDataset); a folder of such files; a folder of pictures (with captions in metadata.jsonl or metadata.csv, or in a .txt beside
            each picture); or the id of a dataset on the Hub.
        split: which split, where there are several; "train" by default.
        streaming: read rows one after the other instead of all ahead.

    Raises:
        ValueError: nothing there that can be read so, or several splits and none chosen.
    """
    path = check_data_path(path)
    if isinstance(path, str):
        return load_dataset(path, split=split or "train", streaming=streaming), Path()
    path = path.absolute()  # paths of pictures are stored, and may be opened from elsewhere
    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        return _choose_split(load_from_disk(str(path)), split, path, streaming), path
    if path.is_dir() and not (files := _files_in(path)):
        return _open_picture_folder(path, split, streaming), path
    files = files if path.is_dir() else sorted(glob(str(path)))
    folder = path if path.is_dir() else path.parent
    return load_dataset(_FORMATS[Path(files[0]).suffix], data_files=files, split="train", streaming=streaming), folder


def check_data_path(path: str | Path) -> Path | str:
    """The path, or the Hub id as text, if `open_dataset` can read such a one; else raises a ValueError."""
    found = Path(path)
    if found.is_dir() or has_magic(str(path)) and any(Path(file).suffix in _FORMATS for file in glob(str(path))):
        return found
    if found.is_file() and found.suffix in _FORMATS:
        return found
    if not found.exists() and _HUB_ID.fullmatch(str(path)) and found.suffix not in _FORMATS:
        return str(path)
    raise ValueError(
        f"There is no dataset at {path}: give a folder written by `Dataset.save_to_disk`, a folder of pictures, files that end in "
        f"{', '.join(_FORMATS)}, or a Hub id."
    )


def _files_in(folder: Path) -> list[str]:
    """Data files of one kind in a folder, in order; pictures and their metadata do not count."""
    found: dict[str, list[str]] = {}
    for file in folder.rglob("*"):  # once: there may be a million pictures
        if file.suffix in _FORMATS and file.name != "metadata.jsonl":
            found.setdefault(file.suffix, []).append(str(file))
    return next((sorted(found[suffix]) for suffix in (".tar", ".parquet", ".arrow", ".jsonl", ".json") if suffix in found), [])


def _choose_split(found: Dataset | DatasetDict, split: str | None, path: Path, streaming: bool) -> AnyDataset:
    if isinstance(found, DatasetDict):
        if split is None and "train" not in found or split is not None and split not in found:
            raise ValueError(f"{path} holds the splits {', '.join(found)}: choose one of them, not {split!r}.")
        found = found[split or "train"]
    return found.to_iterable_dataset() if streaming else found


def _open_picture_folder(path: Path, split: str | None, streaming: bool) -> AnyDataset:
    """A folder of pictures; captions stand in `datasets`' metadata files, or in a text file beside each picture."""
    if not any(path.rglob("metadata.*")):
        pictures = sorted(file for file in path.rglob("*") if file.suffix.lower() in PILImage.registered_extensions())
        if not pictures:
            raise ValueError(f"{path} holds neither data files ({', '.join(_FORMATS)}) nor pictures.")
        if missing := [file for file in pictures if not file.with_suffix(".txt").is_file()]:
            raise ValueError(
                f"{len(missing)} of {len(pictures)} pictures in {path} have no caption, the first is {missing[0]}: put a text file of the "
                "same name beside each, or one metadata.jsonl with `file_name` and `text`."
            )
        texts = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in pictures]
        features = Features({"image": Image(), "text": Value("string")})
        rows = Dataset.from_dict({"image": [str(file) for file in pictures], "text": texts}, features=features)
        return rows.to_iterable_dataset() if streaming else rows
    return load_dataset("imagefolder", data_dir=str(path), split=split or "train", streaming=streaming)


def to_rows(
    dataset: AnyDataset, folder: Path = Path(), pictures: str | Path | None = None, task: str = "draw", prompt: str | None = None
) -> AnyDataset:
    """Rows `{"messages", "images", "output_images"}`, of parts, from whatever the columns tell.

    | columns | what they are |
    |---|---|
    | `messages`, `images` | chats of parts, or of texts with a mark for every picture: `<image>` to understand, `<image_gen>` to generate |
    | `prompt`, `completion`, `images` | TRL's, as chats or texts |
    | `conversations`, `image` | LLaVA-1.5's and LLaVA-OneVision's turns `{"from", "value"}` |
    | `image` (or jpg, png, …), `text` (or caption, txt, …, or `json` with one) | captioned pictures |

    Texts without marks show all pictures at the start of the first turn of the user, as with TRL and LLaVA. Pictures are opened when they are
    read. `image_codes` and `vq_fingerprint` (`vargpt encode`) are kept; other columns go.

    Args:
        folder: to which paths of pictures are relative.
        pictures: another folder, or parquet files with a column of pictures whose paths end in the names that rows have.
        task: of captioned pictures: "draw" them from their captions, or "describe" them in these.
        prompt: what the user says of a captioned picture; "{}" stands for the caption where it is to be drawn.

    Raises:
        ValueError: columns of none of these kinds, an unknown task, or a row whose marks and pictures differ in number.
    """
    if task not in _PROMPTS:
        raise ValueError(f"`task` is {task!r}; it must be one of {', '.join(_PROMPTS)}.")
    columns = set(dataset.column_names or next(iter(dataset), {}))  # of JSON, a stream knows nothing before its first row
    if pictures is None and _is_ready(dataset.features or {}):  # nothing to copy
        return dataset if "output_images" in columns else with_constants(dataset, {"output_images": ([], _PICTURES)})
    shape = _shape_of(columns, task, prompt)
    if shape is None:
        raise ValueError(
            f"The rows have the columns {', '.join(sorted(columns))}, of which none tells what to do. Known are `messages`, `prompt` and "
            "`completion`, `conversations`, or a picture with a caption."
        )
    features = Features({**ROW_FEATURES, **{name: feature for name, feature in _KEPT.items() if name in columns}})
    convert = partial(_convert, shape=shape, find=_Finder(folder, pictures))
    options = {"with_indices": True, "remove_columns": sorted(columns)}
    if isinstance(dataset, IterableDataset):  # whose `map` believes `features` and leaves pictures as they are
        return undecoded(dataset).map(convert, **options).cast(features)
    return undecoded(dataset).map(convert, features=features, **options)


def _is_ready(features: Features) -> bool:
    """Whether rows are as `to_rows` makes them, with pictures to generate or with codes."""
    pictures = {"output_images": _PICTURES} if "output_images" in features else {"image_codes": CODES}
    return all(features.get(name) == feature for name, feature in {"messages": _MESSAGES, "images": _PICTURES, **pictures}.items())


def with_constants(dataset: AnyDataset, columns: dict[str, tuple[Any, Any]]) -> AnyDataset:
    """The dataset with columns of one value each, {name: (value, feature)}."""
    if isinstance(dataset, Dataset):
        for name, (value, feature) in columns.items():
            dataset = dataset.add_column(name, [value] * len(dataset), feature=feature)
        return dataset
    features = Features({**dataset.features, **{name: feature for name, (_, feature) in columns.items()}})
    return undecoded(dataset).map(lambda row: {name: value for name, (value, _) in columns.items()}).cast(features)


def _shape_of(columns: set[str], task: str, prompt: str | None) -> Callable[[Row], Turns] | None:
    """What makes turns of one row: (messages, pictures, pictures to generate or None where marks in the texts sort them)."""
    if "messages" in columns:
        return lambda row: (row["messages"], _pictures_of(row), row.get("output_images"))
    if {"prompt", "completion"} <= columns:
        return lambda row: (_turns(row["prompt"], "user") + _turns(row["completion"], "assistant"), _pictures_of(row), row.get("output_images"))
    if "conversations" in columns:
        return lambda row: ([_turn_of_llava(turn) for turn in row["conversations"]], _pictures_of(row), None)
    picture = next((name for name in _PICTURE_COLUMNS if name in columns), None)
    caption = next((name for name in _CAPTION_COLUMNS if name in columns), "json" if "json" in columns else None)
    if picture is None or caption is None:
        return None
    return partial(_captioned, picture=picture, caption=caption, task=task, prompt=_PROMPTS[task] if prompt is None else prompt)


def _turns(text_or_turns: str | list[Row], role: str) -> list[Row]:
    return [{"role": role, "content": text_or_turns}] if isinstance(text_or_turns, str) else list(text_or_turns)


def _turn_of_llava(turn: Row) -> Row:
    return {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}


def _captioned(row: Row, picture: str, caption: str, task: str, prompt: str) -> Turns:
    words = row[caption]
    if isinstance(words, dict):
        words = next((words[name] for name in _CAPTION_COLUMNS if words.get(name)), None)
    words = words.decode() if isinstance(words, bytes) else words
    if not words or not words.strip():
        raise ValueError(f"there is no caption in {caption!r}.")
    said, shown = {"type": "text", "text": words.strip()}, [row[picture]]
    if task == "draw":
        user, assistant = [{"type": "text", "text": prompt.replace("{}", words.strip())}], [{"type": "image_gen", "text": None}]
        return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}], [], shown
    user = [{"type": "image", "text": None}, {"type": "text", "text": prompt}]
    return [{"role": "user", "content": user}, {"role": "assistant", "content": [said]}], shown, []


def _pictures_of(row: Row) -> list[Any]:
    """Of the column `images`, or the one in `image`."""
    if row.get("images") is not None:
        return list(row["images"])
    return [] if row.get("image") is None else [row["image"]]


def _convert(row: Row, index: int, shape: Callable[[Row], Turns], find: Callable[[Any], Any]) -> Row:
    """One row of `to_rows`."""
    try:
        messages, pictures, drawn = shape(row)
        has_marks = any(isinstance(message["content"], str) for message in messages)
        messages = [{"role": message["role"], "content": _parts(message["content"])} for message in messages]
        kinds = [part["type"] for message in messages for part in message["content"] if part["type"] != "text"]
        if has_marks and drawn:
            raise ValueError("texts with marks list all pictures in `images`, but there are `output_images` as well.")
        if has_marks and pictures and not kinds:
            kinds = ["image"] * len(pictures)
            first = next((message for message in messages if message["role"] == "user"), messages[0])
            first["content"] = [{"type": "image", "text": None} for _ in pictures] + first["content"]
        images, drawn = _sort(kinds, pictures, None if has_marks else drawn or [], bool(row.get("image_codes")))
    except ValueError as error:
        raise ValueError(f"Row {index}: {error}") from error
    converted = {"messages": messages, "images": [find(picture) for picture in images], "output_images": [find(picture) for picture in drawn]}
    return {**converted, **{name: row[name] for name in _KEPT if name in row}}


def _sort(kinds: list[str], pictures: list[Any], drawn: list[Any] | None, has_codes: bool) -> tuple[list[Any], list[Any]]:
    """Pictures to understand and to generate, after their numbers were held against the parts' kinds."""
    wanted = {kind: kinds.count(kind) for kind in ("image", "image_gen")}
    if drawn is None and not has_codes:
        if len(kinds) != len(pictures):
            raise ValueError(f"{len(kinds)} marks of pictures in the texts, but {len(pictures)} pictures.")
        return tuple([picture for picture, found in zip(pictures, kinds) if found == kind] for kind in wanted)
    given = {"image": len(pictures), "image_gen": wanted["image_gen"] if has_codes else len(drawn)}
    if given != wanted:
        raise ValueError(
            f"the turns have {wanted['image']} pictures to understand and {wanted['image_gen']} to generate, but there are {given['image']} "
            f"`images` and {given['image_gen']} `output_images`."
        )
    return pictures, drawn or []


def _parts(content: str | list[Row] | None) -> list[Row]:
    """The parts of a turn's content."""
    if content is None or isinstance(content, str):
        return parts_of_text(content or "")
    return [{"type": part["type"], "text": part.get("text")} for part in content]


def parts_of_text(text: str) -> list[dict[str, str | None]]:
    """The parts of a text with marks; line breaks next to a mark go, since the chat template sets its own."""
    parts: list[dict[str, str | None]] = []
    for piece in re.split(f"({'|'.join(map(re.escape, _MARKS))})", text.strip()):
        if piece in _MARKS:
            parts.append({"type": _MARKS[piece], "text": None})
        elif piece.strip("\n"):
            parts.append({"type": "text", "text": piece.strip("\n")})
    return parts


def undecoded(dataset: AnyDataset) -> AnyDataset:
    """The dataset whose pictures pass as bytes and paths, unopened."""
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(column, Image(decode=False))
        elif feature == _PICTURES:
            dataset = dataset.cast_column(column, List(Image(decode=False)))
    return dataset


def name_of_picture(picture: dict[str, Any]) -> str:
    """Where an unopened picture lies, for people."""
    return picture.get("path") or "in the data file"


class _Finder:
    """Makes of what a row has for a picture, a path or bytes, one that can be opened from anywhere."""

    def __init__(self, folder: Path, pictures: str | Path | None):
        self.folder, self.rows, self.index = folder, None, {}
        if pictures is None:
            return
        if Path(pictures).is_dir() and not _files_in(Path(pictures)):
            self.folder = Path(pictures).absolute()
            return
        rows, _ = open_dataset(pictures)
        column = next((name for name, feature in rows.features.items() if isinstance(feature, Image)), None)
        if column is None:
            raise ValueError(f"{pictures} has no column of pictures, only {', '.join(rows.column_names)}.")
        self.rows = rows.select_columns(column).cast_column(column, Image(decode=False))
        paths = self.rows.flatten()[f"{column}.path"]  # without reading the pictures
        self.index = {Path(path or "").name: index for index, path in enumerate(paths)}

    def __call__(self, picture: Any) -> Any:
        if isinstance(picture, dict):
            if picture.get("bytes") is not None:
                return picture
            picture = picture["path"]
        if not isinstance(picture, str) or "://" in picture:
            return picture
        if self.rows is None:
            return str(self.folder / picture)
        path = Path(picture)
        # ImageNet's parquet files on the Hub add the class to a name: n01440764/n01440764_36.JPEG is n01440764_36_n01440764.JPEG there.
        for name in (path.name, f"{path.stem}_{path.parent.name}{path.suffix}"):
            if name in self.index:
                (found,) = self.rows[self.index[name]].values()
                return found
        raise ValueError(f"There is no picture {path.name} in the parquet files of pictures.")
