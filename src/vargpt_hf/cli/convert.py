"""`vargpt convert`: a released checkpoint in, a model folder of ours out."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Scales, StoredDType, side_lengths


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a checkpoint in the released format.")],
    destination: Annotated[Path, typer.Argument(help="Folder to create.")],
    scales: Scales = None,
    dtype: StoredDType = None,
) -> None:
    """Convert a checkpoint in the released format to a complete model folder.

    \b
    Examples:
      vargpt convert VARGPT_LLaVA-v1 vargpt-7b-2b
      vargpt convert ./small ./converted --scales 1,2,3,4
    """
    from ..conversion.convert import convert_checkpoint

    convert_checkpoint(source, destination, scales=side_lengths(scales), dtype=dtype)
    typer.echo(f"Saved {destination}")
