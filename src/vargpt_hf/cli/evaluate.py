"""`vargpt evaluate`: metrics of vargpt-tiny, or of another model of its kind."""

import json
from collections import Counter
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
_GUESSED_DRAWINGS = 1 / 24  # one shape of 4 in one of 6 colours


def evaluate(
    model: Model = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Rows of each group.")] = 400,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the metrics to this JSON file.")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Let the judges look at drawings and answers of a model trained on shapes and digits; of another one, say that it was not.

    \b
    Examples:
      vargpt evaluate
      vargpt evaluate --model runs/tiny/stage3 --number 200 --output figures.json
    """
    with train_extra("The judges need"):
        from ..evaluation.report import evaluate as measure
        from ..tiny.digits import load_split
        from ..tiny.judges import DigitJudge
        from ..tiny.rows import rows

        judge = DigitJudge(*load_split("train"))
    vargpt, processor = load(model, device, dtype)
    drawings = {group: list(rows(mixture, number, seed, "test")) for group, mixture in DRAWING_GROUPS.items()}
    questions = list(rows(QUESTIONS, 2 * number, seed, "test"))
    figures = measure(vargpt, processor, drawings, questions, judge, seed=seed)
    for name, share in sorted(figures.items()):
        typer.echo(f"{name:28}{share:>8.1%}")
    if knows_nothing(figures, questions):
        typer.echo(
            "This model draws and answers no better than a guess: it was not trained on these shapes and digits, and the metrics say nothing "
            "of what it was trained on.",
            err=True,
        )
    if output is not None:
        output.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


def knows_nothing(figures: dict[str, float], questions: list[dict]) -> bool:
    """Whether neither drawings nor answers are better than guesses, as of a model that was trained on other data.

    Args:
        figures: accuracies, by name.
        questions: rows whose `truth` holds the right answer; who always gives the most frequent one guesses.
    """
    answers = Counter(json.loads(row["truth"])["answer"] for row in questions)
    guessed = answers.most_common(1)[0][1] / answers.total()
    return figures["seen: shape and colour"] < _GUESSED_DRAWINGS and figures["answers"] <= guessed
