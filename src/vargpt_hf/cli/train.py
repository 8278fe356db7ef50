"""`vargpt train`: one stage of training from a YAML file."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..shipped import folder_of
from .options import hide_bars_of_small, needs_extra


def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file of the stage, or the name of one that comes with the package, such as lora.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do one step of everything, say what it took, leave nothing behind.")] = False,
) -> None:
    """Train one stage as CONFIG says; further --options win over the file. Prints a plan, then trains.

    \b
    Examples:
      vargpt train lora --train_data ./my-images --output_dir ./mine
      vargpt train examples/tiny/stage3.yaml --model_name_or_path runs/stage2 --output_dir runs/stage3
      vargpt train my-stage.yaml --dry-run
      vargpt train my-stage.yaml --learning_rate 1e-4 --resume_from_checkpoint true
    """
    with needs_extra("Training needs"):
        from ..training.stage_files import find_stage, read_stage

    given = read_stage(find_stage(config))  # what is wrong with the file is said at once
    hide_bars_of_small(folder_of(_model(given, context.args) or ""))
    with needs_extra("Training needs"):
        from ..training.script import train as run
    run(config, context.args, dry_run)


def _model(given: Mapping[str, Any], options: Sequence[str]) -> str | None:
    """The model that the command line names, or else the file."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model_name_or_path", nargs="?", default=given.get("model_name_or_path"))  # what lacks a value is refused later
    return parser.parse_known_args(options)[0].model_name_or_path
