"""Opens a checkpoint folder: its tensors as views of the files, so that reading costs no memory."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..modeling.checkpoint_vargpt import check_index, open_safetensors, read_index, read_json
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


@contextmanager
def said_of(what: Path | str) -> Iterator[None]:
    """Around the reading of what others wrote: whatever fails becomes one ValueError (TypeError, OSError) that names `what`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # libraries raise nearly anything at content that they did not expect
        said = " ".join(str(error).split())  # in one line
        if type(error) in (ValueError, TypeError):
            raise type(error)(said if str(what) in said else f"{what}: {said}") from error
        raise ValueError(f"{what} cannot be used ({type(error).__name__}: {said}).") from error


def open_weights(path: Path, wrapped_in: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Tensors of one safetensors file or of one pickled file, which is never allowed to run code.

    Args:
        wrapped_in: keys of dictionaries around the tensors, outermost first; those that are not there are passed over.

    Raises:
        OSError: no file or a damaged one, or a pickle that holds anything but tensors.
        ValueError: a file that holds something else than tensors by name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        with open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
    try:
        # Only PyTorch's zip format, which it writes since version 1.6, can be mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle raises nearly anything
        lines = str(error).splitlines() or [type(error).__name__]
        why = next((line for line in lines if "WeightsUnpickler error" in line), lines[0]).partition(" Please use")[0]  # to run the code
        raise OSError(
            f"{path} cannot be read as weights: it is damaged, or a pickle with more than tensors, which could run code. "
            f"Download it again from a source that you trust. ({why})"
        ) from error
    for key in wrapped_in:
        tensors = tensors.get(key, tensors) if isinstance(tensors, dict) else tensors
    if not isinstance(tensors, dict) or not all(isinstance(name, str) and type(tensor) in _TENSORS for name, tensor in tensors.items()):
        raise ValueError(f"{path} must hold a plain dictionary of tensors by name, a state dict.")
    return tensors


_TENSORS = (torch.Tensor, torch.nn.Parameter)


def open_part(path: Path, wrapped_in: Sequence[str]) -> dict[str, SourceTensor]:
    """Tensors of one file, by name; see `open_weights`."""
    return {name: SourceTensor(tensor, path.name) for name, tensor in open_weights(path, wrapped_in).items()}


def open_checkpoint(folder: Path) -> dict[str, SourceTensor]:
    """All tensors of the checkpoint in `folder`, by name.

    Raises:
        OSError: no weights in a form that we read, or as [`read_index`] and [`open_weights`].
        ValueError: a tensor that two files hold, or that is not in the file that the index names; as [`read_index`].
    """
    first = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if first is None:
        raise FileNotFoundError(f"{folder} has no weights: none of {', '.join(WEIGHT_FILES)} is there.")
    index = read_index(first) if first.suffix == ".json" else {}
    opened: dict[str, SourceTensor] = {}
    held: dict[str, Path] = {}
    twice = []
    for path in sorted(set(index.values())) or [first]:
        for name, tensor in open_weights(path).items():
            if name in opened:
                twice.append(f"{name} ({opened[name].file}, {path.name})")
            opened[name], held[name] = SourceTensor(tensor, path.name), path
    if twice:
        raise ValueError(f"{folder} has tensors in two files at once: {shorten(twice)}.")
    check_index(first, index, held)
    return opened


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's files are in a folder."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, none of whose code is run.

    Raises:
        OSError: no tokenizer there.
        ValueError: files that do not make a tokenizer, or one that needs code of its own.
    """
    if not has_tokenizer(folder):
        raise FileNotFoundError(f"{folder} has no tokenizer: neither tokenizer.json nor tokenizer.model is there. Download the whole folder.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the libraries of tokenizers raise nearly anything at files that they did not expect
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if "trust_remote_code" in said:
            said = "it is made by code of its own, which is not run; take one that Transformers knows"
        raise ValueError(f"The tokenizer in {folder} cannot be used ({said}).") from error


def read_config_of(folder: Path, model_type: str, name: str, repository: str) -> dict:
    """`config.json` in a folder of a model in Transformers' format.

    Args:
        name, repository: what to call the model, and where it is found, in refusals.

    Raises:
        OSError: no folder, or no config in it.
        ValueError: a config of another kind of model.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: download {name} first ({repository}), then give the folder it is in.")
    config = read_json(folder / "config.json")
    if config.get("model_type") != model_type:
        raise ValueError(
            f"{folder} is not a {name} in Transformers' format: its model_type is {config.get('model_type')!r}, not {model_type!r}. "
            f"Take {repository}."
        )
    return config


__all__ = ["SourceTensor", "has_tokenizer", "open_checkpoint", "open_tokenizer", "open_part", "open_weights", "read_config_of", "said_of"]
