"""Options that several commands share, and loading the model they name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

Model = Annotated[str | None, typer.Option("--model", "-m", help="Folder or Hub id of a VARGPT; the vargpt-tiny of this package by default.")]
Device = Annotated[str, typer.Option(help='Where to run: "cpu", "cuda", "cuda:1", …; "auto" takes a GPU where there is one.')]
DType = Annotated[str, typer.Option("--dtype", help='Number format of the weights: "auto" (as stored), "float32", "bfloat16", "float16".')]
Seed = Annotated[int, typer.Option(help="Seed of everything random; the same seed gives the same result.")]
Scales = Annotated[str | None, typer.Option(help="Side lengths of the scales, such as 1,2,3,4, where they are not VAR's own ten.")]
StoredDType = Annotated[str | None, typer.Option("--dtype", help="Number format to store, such as bfloat16; as in the source by default.")]
DTYPES = ("auto", "float32", "bfloat16", "float16")


@contextmanager
def train_extra(needs: str) -> Iterator[None]:
    """Around imports that need the extra "train": says how to install it, after the words `needs`, such as "Training needs"."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f'{needs} more packages ({error}): pip install "vargpt-hf[train]".') from error


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
        ValueError: an unknown number format, or a folder that holds no VARGPT.
        OSError: a folder or Hub id that cannot be read.
    """
    # torch and Transformers take seconds to import: `vargpt --help` should not wait for them.
    import torch

    from .. import VargptForConditionalGeneration, VargptProcessor

    model, dtype = check_model(model, dtype)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = VargptForConditionalGeneration.from_pretrained(model, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    return loaded.to(device).eval(), VargptProcessor.from_pretrained(model)


def check_model(model: str | None, dtype: str) -> tuple[str, str]:
    """Folder or Hub id of the model, and its number format; vargpt-tiny in float32 by default.

    Raises:
        ValueError: an unknown number format, or a folder that holds no VARGPT.
        OSError: a folder or Hub id that cannot be read.
    """
    from transformers import AutoConfig

    from ..tiny import TINY_FOLDER

    if dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if model is None:
        model, dtype = str(TINY_FOLDER), "float32" if dtype == "auto" else dtype
    elif not Path(model).is_dir() and (model.startswith((".", "/")) or Path(model).exists()):
        raise ValueError(f"--model is {model!r}, which is not a folder: give a folder with config.json, or a Hub id.")
    config = AutoConfig.from_pretrained(model)
    if config.model_type != "vargpt":
        raise ValueError(
            f"{model} holds a model of type {config.model_type!r}, not a VARGPT; a checkpoint in the released format is converted "
            "by `vargpt convert`."
        )
    return model, dtype


def prompt_inputs(processor: "VargptProcessor", chat: list[dict], device) -> dict:
    """Model inputs of a conversation that the model is to go on with."""
    return processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt").to(device)
