"""`vargpt evaluate`: the figures of vargpt-tiny, or of another model of its kind."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, DType, Model, Seed, load, train_extra

DRAWING_GROUPS = {
    "seen": {"draw": 1.0},
    "unseen": {"draw_unseen": 1.0},
    "written": {"draw_digit": 1.0},
}
QUESTIONS = {"ask": 3.0, "read_digit": 1.0}


def evaluate(
    model: Model = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Rows of each group.")] = 400,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the figures to this JSON file.")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Let the judges look at drawings and answers of a model trained on shapes and digits.

    \b
    Examples:
      vargpt evaluate
      vargpt evaluate --model runs/tiny/stage3 --number 200 --output figures.json
    """
    with train_extra("The judges need"):
        from ..evaluation.judges import DigitJudge
        from ..evaluation.report import evaluate as measure
        from ..tiny.digits import load_split
        from ..tiny.rows import rows
    vargpt, processor = load(model, device, dtype)
    drawings = {group: list(rows(mixture, number, seed, "test")) for group, mixture in DRAWING_GROUPS.items()}
    questions = list(rows(QUESTIONS, 2 * number, seed, "test"))
    figures = measure(vargpt, processor, drawings, questions, DigitJudge(*load_split("train")), seed=seed)
    for name, share in sorted(figures.items()):
        typer.echo(f"{name:28}{share:>8.1%}")
    if output is not None:
        output.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
