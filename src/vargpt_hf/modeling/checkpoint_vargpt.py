"""Files of a checkpoint, checked before anything in them is used: the index of its shards, and what safetensors files say of their tensors."""

import json
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from transformers.utils import cached_file

# Formats in which weights are stored, and their bytes a number. Others are codes of a quantizer, counters or masks: never weights as such.
WEIGHT_FORMATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors format itself


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


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """What a safetensors file says of its tensors, none of which is read.

    Raises:
        OSError: no such file, one that was cut short, or one whose header does not describe it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise _damaged(path, f"{size} bytes cannot hold its header")
        text = file.read(length)
    try:
        found = json.loads(text)
        found.pop("__metadata__", None)
        headers, spans = {}, []
        for name, entry in found.items():
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
                raise _damaged(path, f"shape or place of {name}: {entry}")
            bytes_a_number = WEIGHT_FORMATS.get(entry["dtype"])
            if bytes_a_number is not None and math.prod(shape) * bytes_a_number != end - begin:
                raise _damaged(path, f"{name} has shape {shape} in {entry['dtype']}, but {end - begin} bytes")
            headers[name] = TensorHeader(entry["dtype"], shape, path)
            spans.append((begin, end))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header is not one of safetensors, {type(error).__name__}: {error}") from error
    last = 0
    for begin, end in sorted(spans):
        if begin != last or end < begin:
            raise _damaged(path, "its tensors overlap or leave gaps")
        last = end
    if last != size - 8 - length:
        raise _damaged(path, f"its tensors take {last} bytes, {size - 8 - length} are there")
    return headers


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


def _damaged(path: Path, why: str) -> OSError:
    return OSError(f"{path} cannot be read as weights: it is damaged ({why}). Download it again.")


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
    "read_headers",
    "read_index",
    "read_json",
]
