"""`vargpt tokenizer`: training and metrics of image tokenizers."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, check_device, hide_bars_of_small, needs_extra

tokenizer = typer.Typer(help="Train and evaluate image tokenizers.", no_args_is_help=True, rich_markup_mode=None)


@tokenizer.callback()
def _group() -> None:
    """Train and evaluate image tokenizers."""


@tokenizer.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file, or the name of one that comes with the package, such as tokenizer/shapes.")],
) -> None:
    """Train an image tokenizer as CONFIG says; further --options win over the file. Prints a plan, then trains.

    \b
    Examples:
      vargpt tokenizer train tokenizer/shapes --train_data ./my-images --output_dir ./my-tokenizer
      vargpt tokenizer train my.yaml --resume_from_checkpoint true
    """
    with needs_extra("Training needs"):
        from ..training.image_tokenizer.script import train as run
    run(config, context.args)


@tokenizer.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of an image tokenizer, or of a VARGPT.")],
    data: Annotated[str, typer.Argument(help="Images: a folder of them, or any dataset that `vargpt train` takes.")],
    perceptual_network: Annotated[
        str | None, typer.Option(help="Network that compares images: efficientnet-lite0, lpips-vgg:FILE, lpips-alex:FILE, or a folder.")
    ] = None,
    fid_network: Annotated[
        str | None, typer.Option(help="Network of rFID's features: efficientnet-lite0, inception:FILE, or the folder of a vision model.")
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=0, help="How many images; 0 takes all.")] = 0,
    split: Annotated[str | None, typer.Option(help="Split of the dataset, where there are several.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are looked at together.")] = 16,
    allow_upscaling: Annotated[bool, typer.Option("--allow-upscaling", help="Take images smaller than the model's, too.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the metrics to this JSON file.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Save some images beside their reconstructions to this PNG.")] = None,
    device: Device = "auto",
) -> None:
    """Print PSNR, SSIM, perceptual distance, rFID, and use and perplexity of the codes at every scale, as one JSON.

    \b
    Images are resized until they cover the model's size, and cropped in the middle. Examples:
      vargpt tokenizer evaluate ./my-tokenizer ./my-images
      vargpt tokenizer evaluate ./my-vargpt ./photos --perceptual-network efficientnet-lite0 --fid-network efficientnet-lite0 -o report.json
    """
    hide_bars_of_small(model)
    device = check_device(device)
    with needs_extra("Evaluating needs", "train,evaluate"):
        import torchmetrics  # noqa: F401, used far inside

        from ..training.image_tokenizer.images import ImageSource
        from ..training.image_tokenizer.report import evaluate_on
    report = evaluate_on(
        model,
        ImageSource(data, split=split),
        perceptual_network=perceptual_network,
        fid_network=fid_network,
        number=number,
        batch_size=batch_size,
        allow_upscaling=allow_upscaling,
        sheet=sheet,
        device=device,
    )
    text = json.dumps(report, indent=2)
    typer.echo(text)
    if output is not None:
        output.write_text(text + "\n")
