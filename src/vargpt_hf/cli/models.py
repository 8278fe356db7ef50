"""`vargpt models`: which models come with the package."""

import os

import typer

from ..shipped import DEFAULT_NAME, shipped_models
from .options import MODEL_VARIABLE


def models() -> None:
    """List the models that come with this package; --model, and the environment variable VARGPT_MODEL, take their names.

    \b
    Examples:
      vargpt models
      vargpt info --model vargpt-tiny
    """
    default = os.environ.get(MODEL_VARIABLE) or DEFAULT_NAME
    rows = [("name", "weights", "pixels", "draws", "license")]
    for model in shipped_models():
        height, width = model.image_size
        rows.append((model.name, f"{model.megabytes:.1f} MB", f"{height}×{width}", model.draws, model.license))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        typer.echo(f"{line}  (default)" if row[0] == default else line)
