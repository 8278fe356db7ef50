"""Files of a checkpoint, checked before anything in them is used: the index of its shards, and what safetensors files say of their tensors."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

# Formats in which weights are stored. Others are codes of a quantizer, counters or masks: never weights as such.
WEIGHT_FORMATS = ("F64", "F32", "F16", "BF16")
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class TensorHeader(NamedTuple):
    """What a safetensors file says of a tensor.

    Args:
        format: of its numbers, such as "BF16".
        shape: of the tensor.
        file: that holds it.
    """

    format: str
    shape: tuple[int, ...]
    file: Path


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        OSError: no such file, or no JSON in it.
        ValueError: JSON that is no object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}: give the folder of a complete, downloaded checkpoint.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path} is not JSON ({error}): download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def read_index(path: Path, download: Callable[[str], Path] | None = None) -> dict[str, Path]:
    """The file of each tensor, by the index of a sharded checkpoint; no file is opened, and all of them lie in the folder of the index.

    Args:
        download: gets a file by its name where the folder is on the Hub; by default all files must be there.

    Raises:
        OSError: no index, no JSON in it, or shards that are not there.
        ValueError: no table of tensors and file names, or a file outside of the folder.
    """
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        found = "an empty one" if table == {} else "none" if table is None else type(table).__name__
        raise ValueError(f"{path} must have a `weight_map`, an object of tensor names and file names, got {found}. Download it again.")
    for name, file in table.items():
        if not isinstance(file, str) or not file:
            raise ValueError(f"{path}: the file of {name!r} must be a name, got {file!r}. Download it again.")
        if PurePosixPath(file).is_absolute() or {"..", "\\", "\0", ":"} & {*PurePosixPath(file).parts, *file}:
            raise ValueError(f"{path}: {name!r} is said to be in {file!r}, which is not in the folder of the checkpoint: do not trust it.")
    files = {file: path.parent / file if download is None else download(file) for file in sorted(set(table.values()))}
    if absent := sorted(file for file, where in files.items() if not where.is_file()):
        shown = ", ".join(absent[:20]) + (f" and {len(absent) - 20} more" if len(absent) > 20 else "")
        raise FileNotFoundError(f"{path.name} names shards that {path.parent} has not: {shown}. Download them again.")
    return {name: files[file] for name, file in table.items()}


def check_index(path: Path, index: dict[str, Path], held: dict[str, Path]) -> None:
    """Refuses, by a ValueError, an index at `path` that places a tensor in another file than the one that holds it."""
    for name, file in index.items():
        if held.get(name) != file:
            where = f"is in {held[name].name}" if name in held else "is in none of the files"
            raise ValueError(f"{path} says that {name} is in {file.name}, but it {where}. Download the checkpoint again.")


@contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """A safetensors file, of which only the header is read; safetensors itself refuses one that does not describe the file to the last byte.

    Raises:
        OSError: no such file, one that is truncated, or one whose header does not describe it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise OSError(f"{path} cannot be read as weights: it is damaged ({error}). Download it again.") from error


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """What a safetensors file says of its tensors, none of which is read.

    Raises:
        OSError: as [`open_safetensors`].
    """
    with open_safetensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, no dict
        return {name: TensorHeader(found.get_dtype(), tuple(found.get_shape()), path) for name, found in slices.items()}


def headers_of(source: str | Path, variant: str | None = None, **hub_options) -> dict[str, TensorHeader]:
    """What the safetensors files of a folder or Hub repository say of their tensors; nothing where it has none.

    Args:
        source: folder or Hub id; from the Hub the files are downloaded, as loading would.
        variant: of the weights, such as "fp16".
        hub_options: `revision`, `subfolder`, `token`, `cache_dir`, … of the Hub.

    Raises:
        OSError: damaged files, or shards that are not there.
        ValueError: an index of the wrong form, or one that misplaces tensors.
    """

    def find(name: str) -> Path:
        return Path(cached_file(source, name, **hub_options))

    ending = f".{variant}" if variant else ""
    for name in (f"model{ending}.safetensors", f"model.safetensors.index{ending}.json"):
        try:
            first = find(name)
        except OSError:
            continue
        if first.suffix != ".json":
            return read_headers(first)
        index = read_index(first, None if Path(source).is_dir() else find)
        headers = {tensor: header for file in sorted(set(index.values())) for tensor, header in read_headers(file).items()}
        check_index(first, index, {tensor: header.file for tensor, header in headers.items()})
        return headers
    return {}


def fault_of(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> str | None:
    """Why a tensor cannot be a weight, None where it can; at most its numbers are read, and nothing of their size is allocated.

    Args:
        dtype: in which it is to be stored or loaded; its own by default.
    """
    if tensor.dtype not in WEIGHT_DTYPES or tensor.layout is not torch.strided:
        return (
            f"{str(tensor.dtype).removeprefix('torch.')} and {str(tensor.layout).removeprefix('torch.')}, not floating-point numbers one by one"
        )
    if tensor.numel() == 0:
        return f"empty, of shape {tuple(tensor.shape)}"
    extremes = torch.stack(torch.aminmax(tensor.detach()))  # NaN where one is among the numbers
    found = extremes.tolist()
    if not all(map(math.isfinite, found)):
        return "not finite: it holds NaN or infinity"
    if dtype is not None and not all(map(math.isfinite, extremes.to(dtype).tolist())):
        return f"beyond the range of {str(dtype).removeprefix('torch.')}: its numbers go from {found[0]:g} to {found[1]:g}"
    return None


__all__ = [
    "WEIGHT_DTYPES",
    "WEIGHT_FORMATS",
    "TensorHeader",
    "check_index",
    "fault_of",
    "headers_of",
    "open_safetensors",
    "read_headers",
    "read_index",
    "read_json",
]
