"""`vargpt convert`: a released checkpoint in, a model folder of ours out."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a checkpoint in the released format.")],
    destination: Annotated[Path, typer.Argument(help="Folder to create.")],
    scales: Annotated[str | None, typer.Option(help="Side lengths of the scales, such as 1,2,3,4, where they are not VAR's own ten.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Number format to store, such as bfloat16; as in the source by default.")] = None,
) -> None:
    """Convert a checkpoint in the released format to a complete model folder.

    \b
    Examples:
      vargpt convert VARGPT_LLaVA-v1 vargpt-7b-2b
      vargpt convert ./small ./converted --scales 1,2,3,4
    """
    import torch

    from ..conversion.convert import convert_checkpoint

    if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"--dtype is {dtype!r}, which torch does not know; use float32, bfloat16 or float16.")
    sides = None
    if scales is not None:
        if not all(side.strip().isdecimal() for side in scales.split(",")):
            raise ValueError(f"--scales is {scales!r}; give whole numbers between commas, such as 1,2,3,4.")
        sides = tuple(int(side) for side in scales.split(","))
    convert_checkpoint(source, destination, scales=sides, dtype=None if dtype is None else getattr(torch, dtype))
    typer.echo(f"Saved {destination}")
