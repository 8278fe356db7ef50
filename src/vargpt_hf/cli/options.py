"""Options that several commands share, and loading the model they name."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..shipped import DEFAULT_NAME, folder_of, names, shipped_model

if TYPE_CHECKING:
    from ..modeling.configuration_vargpt import VargptConfig
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

MODEL_VARIABLE = "VARGPT_MODEL"
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar=MODEL_VARIABLE,
        help=f"Folder or Hub id of a VARGPT, or a name that `vargpt models` lists; {DEFAULT_NAME} by default.",
    ),
]
DTYPE_HELP = (
    'Number format of the weights: "auto" (as stored, where the device has units for it), "float32", "bfloat16", "float16", or "mixed" (as '
    "stored, computed with in float32)."
)
Device = Annotated[str, typer.Option(help='Where to run: "cpu", "cuda", "cuda:1", …; "auto" takes a GPU where there is one.')]
DType = Annotated[str, typer.Option("--dtype", help=DTYPE_HELP)]
Seed = Annotated[int, typer.Option(help="Seed of everything random; the same seed gives the same result.")]
Scales = Annotated[str | None, typer.Option(help="Side lengths of the scales, such as 1,2,3,4, where they are not VAR's own ten.")]
StoredDType = Annotated[str | None, typer.Option("--dtype", help="Number format to store, such as bfloat16; as in the source by default.")]
DTYPES = ("auto", "float32", "bfloat16", "float16", "mixed")
_SMALL = 2**30  # bytes of weights that load before a bar could be read


@contextmanager
def needs_extra(needs: str, extra: str = "train") -> Iterator[None]:
    """Around imports that need an extra: says how to install it, after the words `needs`, such as "Training needs"."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f'{needs} more packages ({error}): pip install "vargpt-hf[{extra}]".') from error


def model_folder(model: str | None) -> tuple[str, str]:
    """What people call a model, and the folder or Hub id that it is loaded from."""
    return model or DEFAULT_NAME, folder_of(model)


def side_lengths(scales: str | None) -> tuple[int, ...] | None:
    """The numbers of `--scales`; ValueError where they are none."""
    if scales is None:
        return None
    if not all(side.strip().isdecimal() for side in scales.split(",")):
        raise ValueError(f"--scales is {scales!r}; give whole numbers between commas, such as 1,2,3,4.")
    return tuple(int(side) for side in scales.split(","))


def load(model: str | None, device: str = "auto", dtype: str = "auto") -> "tuple[VargptForConditionalGeneration, VargptProcessor]":
    """The model, ready to generate, and its processor.

    Raises:
        ValueError: an unknown number format, a device that is not there, or a folder that holds no VARGPT.
        OSError: a folder or Hub id that cannot be read.
    """
    model, dtype = check_model(model, dtype, device)
    # torch and Transformers take seconds to import: `vargpt --help` should not wait for them.
    from .. import VargptProcessor
    from ..hardware import keep_freed_memory
    from ..inference.mixed import load_to_infer

    device = check_device(device)
    if device == "cpu":
        keep_freed_memory()
    loaded = load_to_infer(model, dtype)
    processor = VargptProcessor.from_pretrained(model)
    processor.check_fits(loaded.config)
    return loaded.to(device).eval(), processor


def check_model(model: str | None, dtype: str, device: str = "auto") -> tuple[str, str]:
    """Folder or Hub id of the model, and its number format; a model that comes with this package in float32 by default.

    "auto" is the format in which the weights are stored, or float32 where that would be slow on the device, which is then said in one line.

    Raises:
        ValueError: an unknown number format, or a folder or Hub id that is not there or holds no VARGPT.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if (shipped := shipped_model(model)) is not None:
        model, dtype = str(shipped.folder), "float32" if dtype == "auto" else dtype  # so small that nothing else is faster
    elif not Path(model).exists() and "/" not in model:
        raise ValueError(
            f"--model is {model!r}: there is no such folder, and no model of that name comes with this package, which has {names()}; a Hub id "
            "has a slash."
        )
    elif not Path(model).is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists()):
        raise ValueError(f"--model is {model!r}, which is not a folder: give a folder with config.json, or a Hub id.")
    hide_bars_of_small(model)
    from transformers import AutoConfig

    from .. import VargptConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except OSError as error:
        if Path(model).is_dir():
            raise
        raise ValueError(f"--model is {model!r}: there is no such folder, and from the Hub it cannot be read ({error}).") from error
    if config.model_type != VargptConfig.model_type:
        raise ValueError(
            f"{model} holds a model of type {config.model_type!r}, not a VARGPT; a checkpoint in the released format is converted "
            "by `vargpt convert`."
        )
    return model, _fitting(dtype, config, device)


def _fitting(dtype: str, config: "VargptConfig", device: str) -> str:
    """The number format to load in; says in one line where that is not the stored one, or is slow on the device."""
    if dtype == "mixed":
        return dtype
    import torch

    from ..hardware import loading_dtype, slowness

    device, stored = check_device(device), config.dtype
    found = loading_dtype(dtype, stored, device, config.least_parameters())
    asked = stored if dtype == "auto" else getattr(torch, dtype)
    if asked is not None and (cost := slowness(device, asked)) is not None:
        chosen = "Loading in float32" if found == "float32" else "Computing in float32, with weights as stored, for which alone there is room"
        typer.echo(f"{chosen}: {cost}." if dtype == "auto" else f"--dtype {dtype}: {cost}; give float32, or leave it out.", err=True)
    return found


def check_device(device: str) -> str:
    """The device, where "auto" is "cuda" where torch finds a GPU, else "cpu".

    Raises:
        ValueError: a device that torch does not know, or that is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f'--device is {device!r}; give "auto", "cpu", "cuda" or "cuda:1".') from error
    if wanted.type == "cpu":
        return device
    if found is None or found.type != wanted.type:
        there = "no accelerator" if found is None else f"an accelerator of type {found.type!r}"
        raise ValueError(f'--device is {device!r}, but torch {torch.__version__} finds {there} here: give "auto" or "cpu".')
    if (wanted.index or 0) >= torch.accelerator.device_count():
        raise ValueError(f"--device is {device!r}, but there are {torch.accelerator.device_count()} here, counted from 0.")
    return device


def hide_bars_of_small(model: str) -> None:
    """Hides the bars of loading where a folder's weights are small, here and in processes to come; by Hugging Face's own switch."""
    if Path(model).is_dir() and sum(file.stat().st_size for file in Path(model).glob("*.safetensors")) < _SMALL:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # is read when Transformers is imported
        if "transformers" in sys.modules:
            sys.modules["transformers"].utils.logging.disable_progress_bar()
