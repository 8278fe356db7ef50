"""`vargpt data`: what a dataset holds."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Model, needs_extra

data = typer.Typer(help="Look at datasets before training on them.", no_args_is_help=True, rich_markup_mode=None)


@data.callback()
def _group() -> None:
    """Look at datasets before training on them."""


@data.command()
def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Dataset of rows or of captioned images, or a stage's YAML file.")],
    model: Model = None,
    images: Annotated[str | None, typer.Option(help="Folder, or parquet files, with the images that rows name.")] = None,
    task: Annotated[str | None, typer.Option(help='Of captioned images: "draw" them, as by default, or "describe" them.')] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset, where there are several.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a row that training will take; what would be cut is counted.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Save a plot of the rows' lengths here.")] = None,
) -> None:
    """Count rows, images and tokens of DATA, and list what training would stumble over: rows that cannot be read, broken images, wrong
    counts, long rows.

    \b
    Goes through all rows. Exits with 1 where it found any fault. Examples:
      vargpt data check ./my-images --model ./my-vargpt
      vargpt data check stage2.yaml --plot lengths.png
    """
    with needs_extra("Checking data needs"):
        from ..training.data import DataSource, sources_of
        from ..training.data_check import check_rows, draw_lengths
        from ..training.script import parse
    from ..processing.processing_vargpt import VargptProcessor
    from ..shipped import folder_of

    if Path(data).suffix in (".yaml", ".yml"):
        if given := [name for name, value in (("--images", images), ("--task", task), ("--split", split)) if value is not None]:
            raise ValueError(f"{data} says itself what its data are: leave out {', '.join(given)}, or set it there.")
        script, training, model_config = parse(data)
        if script.method != "sft":
            raise ValueError(f"{data} trains on pairs of answers, and this looks at rows: `vargpt train {data} --dry-run` tries a step of it.")
        sources = sources_of(script.train_data)
        model, max_length = model or model_config.model_name_or_path, max_length or training.max_length
    else:
        sources = [DataSource(data, split=split, images=images, task=task or "draw")]
    processor = VargptProcessor.from_pretrained(folder_of(model))
    report = None
    for source in sources:
        # As a stream: nothing is copied, and no fault can end it.
        report = check_rows(source.load(streaming=True, keep_faults=True), processor, max_length, source.path if sources[1:] else None, report)
    typer.echo(str(report))
    if plot is not None and report.lengths:
        draw_lengths(report.lengths, plot, max_length)
        typer.echo(f"Saved {plot}")
    if not report.is_clean:
        raise typer.Exit(1)
