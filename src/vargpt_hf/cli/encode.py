"""`vargpt encode`: images to draw, as codes, ahead of training."""

from pathlib import Path
from typing import Annotated

import typer

from ..shipped import folder_of
from .options import Model, check_device, hide_bars_of_small, needs_extra


def encode(
    data: Annotated[str, typer.Argument(help="Dataset of rows or of captioned images, as `vargpt train` takes it.")],
    output: Annotated[Path, typer.Argument(help="Folder for parquet files with codes; an interrupted run resumes there.")],
    model: Model = None,
    images: Annotated[str | None, typer.Option(help="Folder, or parquet files, with the images that rows name.")] = None,
    prompt: Annotated[str | None, typer.Option(help='What the user says of a captioned image; "{}" stands for the caption.')] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset, where there are several.")] = None,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Rows in each file.")] = 2048,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are encoded together.")] = 16,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes that encode at the same time.")] = 1,
    device: Annotated[str, typer.Option(help='"cpu", or "cuda" for all GPUs, one for each process.')] = "cpu",
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out rows with images that cannot be read.")] = False,
) -> None:
    """Turn the images to draw in DATA into codes of the model's image tokenizer.

    \b
    Examples:
      vargpt encode ./my-images ./my-codes --model ./my-vargpt
      vargpt encode instruct.json ./codes --images ./imagenet --model ./my-vargpt --num-processes 8
    """
    model = folder_of(model)
    hide_bars_of_small(model)
    device = check_device(device)
    with needs_extra("Encoding needs"):
        from ..training.codes import encode_rows
        from ..training.data import load_rows
    encode_rows(
        load_rows(data, split, images=images, prompt=prompt),
        model,
        output,
        rows_per_shard=rows_per_shard,
        batch_size=batch_size,
        num_processes=num_processes,
        device=device,
        skip_broken=skip_broken,
    )
    typer.echo(f"Saved {output}")
