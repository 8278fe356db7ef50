"""Opens a checkpoint folder: its config, and its tensors as views of the files, so that reading costs no memory."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from ..modeling.pretrained_vargpt import shorten

# In order of preference: a sharded checkpoint has an index, a small one a single file.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


class SourceTensor(NamedTuple):
    """A tensor of a checkpoint, mapped from its file and read when it is used, and the name of that file."""

    tensor: torch.Tensor
    file: str


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        ValueError: no file, or no JSON object in it.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}: give the folder of a whole, downloaded checkpoint.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the tensors of the checkpoint in `folder`.

    Raises:
        ValueError: no weights in a form that we read, or a shard that the index names is absent.
    """
    first = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if first is None:
        raise ValueError(f"{folder} has no weights: none of {', '.join(WEIGHT_FILES)} is there.")
    if first.suffix != ".json":
        return [first]
    shards = [folder / name for name in sorted(set(read_json(first).get("weight_map", {}).values()))]
    absent = [path.name for path in shards if not path.is_file()]
    if absent or not shards:
        raise ValueError(f"{first.name} names shards that {folder} has not: {', '.join(absent) or 'none at all'}. Download them again.")
    return shards


def open_weights(path: Path, wrapped_in: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Tensors of one safetensors file or of one pickled file, which is never allowed to run code.

    Args:
        wrapped_in: keys of dictionaries around the tensors, outermost first; those that are not there are passed over.

    Raises:
        ValueError: no file or a damaged one, or a pickle that holds anything but tensors.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
        # Only PyTorch's zip format, which it writes since version 1.6, can be mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(
            f"{path} cannot be read as weights: it is damaged, or a pickle with more than tensors, which could run code. "
            f"Download it again from a source that you trust. ({error})"
        ) from error
    for key in wrapped_in:
        tensors = tensors.get(key, tensors) if isinstance(tensors, dict) else tensors
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} must hold a plain dictionary of tensors, a state dict.")
    return tensors


def open_checkpoint(folder: Path) -> dict[str, SourceTensor]:
    """All tensors of the checkpoint in `folder`, by name.

    Raises:
        ValueError: as [`weight_files`] and [`open_weights`]; a tensor that two files hold.
    """
    opened: dict[str, SourceTensor] = {}
    twice = []
    for path in weight_files(folder):
        for name, tensor in open_weights(path).items():
            if name in opened:
                twice.append(f"{name} ({opened[name].file}, {path.name})")
            opened[name] = SourceTensor(tensor, path.name)
    if twice:
        raise ValueError(f"{folder} has tensors in two files at once: {shorten(twice)}.")
    return opened
