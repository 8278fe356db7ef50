"""`vargpt data`: what a dataset holds."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Model, train_extra

data = typer.Typer(help="Look at datasets before training on them.", no_args_is_help=True, rich_markup_mode=None)


@data.callback()
def _group() -> None:
    """Look at datasets before training on them."""


@data.command()
def check(
    source: Annotated[str, typer.Argument(metavar="DATA", help="Dataset of rows or of captioned pictures, or a stage's YAML file.")],
    model: Model = None,
    pictures: Annotated[str | None, typer.Option(help="Folder, or parquet files, with the pictures that rows name.")] = None,
    task: Annotated[str, typer.Option(help='Of captioned pictures: "draw" them, or "describe" them.')] = "draw",
    split: Annotated[str | None, typer.Option(help="Split of the dataset, where there are several.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a row that training will take; what would be cut is counted.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Save a picture of the rows' lengths here.")] = None,
) -> None:
    """Count rows, pictures and tokens of DATA, and find what training would stumble over: broken pictures, wrong counts, long rows.

    \b
    Exits with 1 where it found any. Examples:
      vargpt data check ./my-pictures --model ./my-vargpt
      vargpt data check stage2.yaml --plot lengths.png
    """
    with train_extra("Checking data needs"):
        from ..training.check import check_rows, draw_lengths
        from ..training.data import DataSource, mix_rows, sources_of
        from ..training.script import parse
    from ..processing.processing_vargpt import VargptProcessor
    from ..tiny import TINY_FOLDER

    if Path(source).suffix in (".yaml", ".yml"):
        script, training, model_config = parse(source)
        sources = sources_of(script.train_data)
        model, max_length = model or model_config.model_name_or_path, max_length or training.max_length
    else:
        sources = [DataSource(source, split=split, pictures=pictures, task=task)]
    processor = VargptProcessor.from_pretrained(model or TINY_FOLDER)
    report = check_rows(mix_rows(sources, stop="all_exhausted_without_replacement"), processor, max_length)
    typer.echo(str(report))
    if plot is not None and report.lengths:
        draw_lengths(report.lengths, plot, max_length)
        typer.echo(f"Saved {plot}")
    if not report.is_clean:
        raise typer.Exit(1)
