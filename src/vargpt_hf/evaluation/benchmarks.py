"""The field's drawing suites: how each writes its prompts, and where its scorer looks for the images.

Prompts are not part of this package: each suite's own file is given. A row of the table `BENCHMARKS` is one suite; what is drawn, with which
seeds and by which process, is `drawn_suites`' business.
"""

import glob
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..restartable import write_whole
from .archive import write_npz
from .image_files import read_image

_LONGEST_NAME = 255  # bytes, of a file


@dataclass(frozen=True)
class Item:
    """A prompt of a suite.

    Attributes:
        key: by which the suite knows it.
        prompt: as the suite has it.
        metadata: what its scorer wants beside.
        image: to edit, where the suite edits.
    """

    key: str
    prompt: str
    metadata: dict[str, Any] = field(default_factory=dict)
    image: Path | None = None


class Benchmark:
    """A drawing suite.

    Attributes:
        images_per_prompt: as its authors draw.
        edits: whether prompts are instructions for images.
        single: whether its layout holds one image a prompt.
        prompts: what its file of prompts is, for messages.
    """

    images_per_prompt = 1
    edits = False
    single = False
    prompts = ""

    def read(self, file: Path, images: Path | None, folder: Path) -> list[Item]:
        """The prompts, in the file's order.

        Args:
            file: of prompts, or a folder of them, as the suite has it.
            images: folder of the images to edit.
            folder: that the drawn images are in, or will be.

        Raises:
            ValueError: a file that is not of this suite, with the row.
            OSError: a file that cannot be read.
        """
        raise NotImplementedError

    def place(self, item: Item, index: int, number: int, per_prompt: int) -> str:
        """Where the image of an item goes: the item's index, and the image's number of `per_prompt`."""
        raise NotImplementedError

    def prepare(self, folder: Path, file: Path) -> None:
        """Writes what has to be there before images are drawn."""

    def finish(self, folder: Path, items: Sequence[Item], per_prompt: int) -> None:
        """Writes what the scorer wants beside the images."""

    def official(self, folder: Path, item: Item, index: int) -> list[Path]:
        """The files that the scorer looks at for an item; only those that are there."""
        found: list[Path] = []
        per_prompt = self.images_per_prompt
        while len(found) < per_prompt and (file := folder / self.place(item, index, len(found), per_prompt)).is_file():
            found.append(file)
        return found


class GenEval(Benchmark):
    """`evaluation_metadata.jsonl` → `00000/samples/0000.png`, and each line beside its images."""

    images_per_prompt = 4
    prompts = "evaluation_metadata.jsonl of GenEval"

    def read(self, file: Path, images: Path | None, folder: Path) -> list[Item]:
        """See `Benchmark`."""
        return [Item(f"{index:05}", _text(row, "prompt", where), {"row": row}) for index, (row, where) in enumerate(_lines(file))]

    def place(self, item: Item, index: int, number: int, per_prompt: int) -> str:
        """See `Benchmark`."""
        return f"{index:05}/samples/{number:04}.png"

    def finish(self, folder: Path, items: Sequence[Item], per_prompt: int) -> None:
        """See `Benchmark`."""
        for item in items:
            line = json.dumps(item.metadata["row"]) + "\n"
            write_whole(folder / item.key / "metadata.jsonl", lambda path, line=line: path.write_text(line))


class GenEval2(Benchmark):
    """`geneval2_data.jsonl` → `images/00000.png`, and `image_paths.json` from prompts to files."""

    single = True
    prompts = "geneval2_data.jsonl of GenEval 2"

    def read(self, file: Path, images: Path | None, folder: Path) -> list[Item]:
        """See `Benchmark`."""
        items, seen = [], {}
        for index, (row, where) in enumerate(_lines(file)):
            prompt = _text(row, "prompt", where)
            if prompt in seen:
                raise ValueError(f"{where} has the prompt of line {seen[prompt] + 1}; the scorer finds images by their prompts.")
            seen[prompt] = index
            items.append(Item(f"{index:05}", prompt, {"row": row}))
        return items

    def place(self, item: Item, index: int, number: int, per_prompt: int) -> str:
        """See `Benchmark`."""
        return f"images/{index:05}.png"

    def finish(self, folder: Path, items: Sequence[Item], per_prompt: int) -> None:
        """See `Benchmark`."""
        paths = {item.prompt: str((folder / self.place(item, index, 0, 1)).resolve()) for index, item in enumerate(items)}
        write_whole(folder / "image_paths.json", lambda path: path.write_text(json.dumps(paths, indent=1)))


class DPGBench(Benchmark):
    """Folder of `KEY.txt` → `parts/KEY/0.png`, and grids of two by two, `grids/KEY.png`, which the scorer crops."""

    images_per_prompt = 4
    prompts = "the folder prompts/ of DPG-Bench"

    def read(self, file: Path, images: Path | None, folder: Path) -> list[Item]:
        """See `Benchmark`."""
        files = sorted(file.glob("*.txt")) if file.is_dir() else []
        if not files:
            raise ValueError(f"{file} is no folder of .txt files: give {self.prompts}.")
        return [Item(path.stem, _text({"prompt": _read(path)}, "prompt", str(path))) for path in files]

    def place(self, item: Item, index: int, number: int, per_prompt: int) -> str:
        """See `Benchmark`."""
        if per_prompt > 4:
            raise ValueError(f"A grid of DPG-Bench holds four images, not {per_prompt}.")
        return f"parts/{item.key}/{number}.png"

    def finish(self, folder: Path, items: Sequence[Item], per_prompt: int) -> None:
        """See `Benchmark`."""
        (folder / "grids").mkdir(exist_ok=True)
        for index, item in enumerate(items):
            parts = [read_image(folder / self.place(item, index, number, per_prompt)) for number in range(per_prompt)]
            width, height = parts[0].size
            grid = Image.new("RGB", (width * min(per_prompt, 2), height * (1 + (per_prompt > 2))))
            for number, part in enumerate(parts):
                grid.paste(part, (number % 2 * width, number // 2 * height))
            write_whole(folder / "grids" / f"{item.key}.png", lambda path, grid=grid: grid.save(path, format="PNG"))

    def official(self, folder: Path, item: Item, index: int) -> list[Path]:
        """See `Benchmark`."""
        found = (folder / "grids" / f"{item.key}.png", folder / f"{item.key}.png")
        return [file for file in found if file.is_file()][:1]


class WISE(Benchmark):
    """JSON list of `prompt_id`, `Prompt`, `Explanation` (a file, or a folder of them) → `1.png`."""

    single = True
    prompts = "a file of WISE's data/, or the folder"

    def read(self, file: Path, images: Path | None, folder: Path) -> list[Item]:
        """See `Benchmark`."""
        files = sorted(path for path in file.glob("*.json") if "rewrite" not in path.name) if file.is_dir() else [file]
        if not files:
            raise ValueError(f"{file} holds no .json files: give {self.prompts}.")
        items = []
        for path in files:
            for number, row in enumerate(_json(path, list)):
                where = f"{path}, row {number + 1}"
                prompt_id = row.get("prompt_id") if isinstance(row, dict) else None
                if isinstance(prompt_id, bool) or not isinstance(prompt_id, int):
                    raise ValueError(f"{where} has no whole number prompt_id: give {self.prompts}.")
                items.append(Item(str(prompt_id), _text(row, "Prompt", where), {"row": row}))
        return _unique(sorted(items, key=lambda item: int(item.key)), file)

    def place(self, item: Item, index: int, number: int, per_prompt: int) -> str:
        """See `Benchmark`."""
        return f"{item.key}.png"


class T2ICompBench(Benchmark):
    """`color_val.txt` and its like, a prompt a line → `samples/PROMPT_000000.png`, counted on from prompt to prompt."""

    images_per_prompt = 10
    prompts = "a file such as color_val.txt of T2I-CompBench"

    def read(self, file: Path, images: Path | None, folder: Path) -> list[Item]:
        """See `Benchmark`."""
        items = []
        for number, line in enumerate(_read(file).splitlines()):
            where = f"{file}, line {number + 1}"
            prompt = _text({"prompt": line.split("\t")[0].strip()}, "prompt", where)
            if "/" in prompt or "\0" in prompt or len(prompt.encode()) + len("_000000.png") > _LONGEST_NAME:
                raise ValueError(f"{where} cannot name its image's file, as the scorer wants it: {prompt!r}.")
            items.append(Item(f"{number:06}", prompt))
        if not items:
            raise ValueError(f"{file} is empty: give {self.prompts}.")
        return items

    def place(self, item: Item, index: int, number: int, per_prompt: int) -> str:
        """See `Benchmark`."""
        return f"samples/{item.prompt}_{index * per_prompt + number:06}.png"

    def official(self, folder: Path, item: Item, index: int) -> list[Path]:
        """See `Benchmark`."""
        form = re.compile(re.escape(item.prompt) + r"_\d{6}\.png")
        return sorted(path for path in (folder / "samples").glob(f"{glob.escape(item.prompt)}_*.png") if form.fullmatch(path.name))


class ImageNet50k(Benchmark):
    """Names of classes, one a line → `0000/00.png`, 50 a class, and `samples.npz` for scorers that read one array."""

    images_per_prompt = 50
    prompts = "a .txt with the name of each class, one a line, in the classes' order"

    def read(self, file: Path, images: Path | None, folder: Path) -> list[Item]:
        """See `Benchmark`."""
        lines = _read(file).splitlines()
        if not lines:
            raise ValueError(f"{file} is empty: give {self.prompts}.")
        named = [_text({"name": line.strip()}, "name", f"{file}, line {number + 1}") for number, line in enumerate(lines)]
        return [Item(f"{number:04}", name, {"class": number}) for number, name in enumerate(named)]

    def place(self, item: Item, index: int, number: int, per_prompt: int) -> str:
        """See `Benchmark`."""
        return f"{index:04}/{number:02}.png"

    def finish(self, folder: Path, items: Sequence[Item], per_prompt: int) -> None:
        """See `Benchmark`."""
        files = [folder / self.place(item, index, number, per_prompt) for index, item in enumerate(items) for number in range(per_prompt)]
        write_npz(folder / "samples.npz", files)


class ImgEdit(Benchmark):
    """`basic_edit.json` and its folder of originals → `KEY.png`."""

    edits = single = True
    prompts = "basic_edit.json of ImgEdit's Benchmark/Basic"

    def read(self, file: Path, images: Path | None, folder: Path) -> list[Item]:
        """See `Benchmark`."""
        items = []
        for key, row in _json(file, dict).items():
            where = f"{file}, key {key!r}"
            original = _text(row, "id", where)
            path = None if images is None else images / original
            if path is not None and not path.is_file():
                raise ValueError(f"{where} edits {original}, which is not in {images}: give the folder of the originals.")
            items.append(Item(_name(key, where), _text(row, "prompt", where), {"row": row, "edit_type": _text(row, "edit_type", where)}, path))
        return items

    def place(self, item: Item, index: int, number: int, per_prompt: int) -> str:
        """See `Benchmark`."""
        return f"{item.key}.png"


class GEdit(Benchmark):
    """Folder of GEdit-Bench, as datasets saves it → `fullset/TASK/LANGUAGE/KEY.png`, with `KEY_SRCIMG.png` beside."""

    edits = single = True
    prompts = "the folder of stepfun-ai/GEdit-Bench, as `save_to_disk` of datasets writes it"

    def read(self, file: Path, images: Path | None, folder: Path) -> list[Item]:
        """See `Benchmark`."""
        rows = self._rows(file).remove_columns(["input_image", "input_image_raw"])
        items = []
        for number, row in enumerate(rows):
            where = f"{file}, row {number + 1}"
            task, language = (_name(_text(row, name, where), where) for name in ("task_type", "instruction_language"))
            key = f"fullset/{task}/{language}/{_name(_text(row, 'key', where), where)}"
            items.append(Item(key, _text(row, "instruction", where), {"row": row, "edit_type": task}, folder / f"{key}_SRCIMG.png"))
        return _unique(items, file)

    def prepare(self, folder: Path, file: Path) -> None:
        """See `Benchmark`."""
        for item, row in zip(self.read(file, None, folder), self._rows(file)):
            if not item.image.is_file():
                item.image.parent.mkdir(parents=True, exist_ok=True)
                image = row["input_image"].convert("RGB")
                write_whole(item.image, lambda path, image=image: image.save(path, format="PNG"))

    def place(self, item: Item, index: int, number: int, per_prompt: int) -> str:
        """See `Benchmark`."""
        return f"{item.key}.png"

    def _rows(self, file: Path) -> Any:
        from datasets import DatasetDict, load_from_disk

        try:
            found = load_from_disk(str(file))
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{file} holds no dataset ({error}): give {self.prompts}.") from error
        rows = next(iter(found.values())) if isinstance(found, DatasetDict) else found
        wanted = {"task_type", "key", "instruction", "instruction_language", "input_image", "input_image_raw"}
        if missing := wanted - set(rows.column_names):
            raise ValueError(f"{file} has no columns {', '.join(sorted(missing))}: give {self.prompts}.")
        return rows


BENCHMARKS: dict[str, Benchmark] = {
    "geneval": GenEval(),
    "geneval2": GenEval2(),
    "dpg-bench": DPGBench(),
    "wise": WISE(),
    "t2i-compbench": T2ICompBench(),
    "imagenet-50k": ImageNet50k(),
    "imgedit": ImgEdit(),
    "gedit": GEdit(),
}


def read_official(name: str, folder: Path, file: Path, images: Path | None = None) -> list[tuple[Item, Path]]:
    """The images of a folder in a suite's official layout, whoever drew them, each with its prompt.

    Raises:
        ValueError: an unknown suite, a file that is not of it, or a folder without any of its images.
        OSError: a file that cannot be read.
    """
    benchmark = known_benchmark(name)
    items = benchmark.read(file, images, folder)
    found = [(item, path) for index, item in enumerate(items) for path in benchmark.official(folder, item, index)]
    if not found:
        example = benchmark.place(items[0], 0, 0, benchmark.images_per_prompt)
        raise ValueError(f"{folder} holds no images in the layout of {name}, such as {example}.")
    return found


def known_benchmark(name: str) -> Benchmark:
    """The suite of a name; ValueError where there is none."""
    if name not in BENCHMARKS:
        raise ValueError(f"There is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 (byte {error.start}).") from error


def _lines(file: Path) -> Iterator[tuple[dict, str]]:
    """The objects of a .jsonl file, each with where it stands; empty lines at the end are none."""
    lines = _read(file).rstrip("\n").split("\n")
    for number, line in enumerate(lines):
        where = f"{file}, line {number + 1}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} is no JSON object.")
        yield row, where


def _json(file: Path, kind: type) -> Any:
    try:
        found = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON file: {error}.") from error
    if not isinstance(found, kind) or not found:
        raise ValueError(f"{file} must hold a JSON {'list' if kind is list else 'object'} with something in it.")
    return found


def _text(row: Any, name: str, where: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} has no text under {name!r}, but {value!r}.")
    return value


def _name(key: str, where: str) -> str:
    """A key that can name a file."""
    if "/" in key or "\0" in key or key in ("", ".", "..") or len(key.encode()) > _LONGEST_NAME - len("_SRCIMG.png"):
        raise ValueError(f"{where} cannot name a file: {key!r}.")
    return key


def _unique(items: list[Item], file: Path) -> list[Item]:
    seen = set()
    for item in items:
        if item.key in seen:
            raise ValueError(f"{file} has {item.key} twice.")
        seen.add(item.key)
    return items


__all__ = ["BENCHMARKS", "Benchmark", "Item", "known_benchmark", "read_official"]
