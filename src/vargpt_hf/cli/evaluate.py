"""`vargpt evaluate`: a suite of metrics, a report that says how they were made, and comparisons of such reports."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..tiny import TINY_NAME
from .options import MODEL_VARIABLE, Device, DType, Seed, needs_extra
from .suites import SUITES, Asked


def evaluate(
    context: typer.Context,
    folder: Annotated[str | None, typer.Argument(metavar="MODEL", help="The same as --model.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", envvar=MODEL_VARIABLE, help=f"As of other commands; {TINY_NAME} by default for shapes-and-digits."),
    ] = None,
    suite: Annotated[str, typer.Option(help=f"What to measure: {', '.join(SUITES)}; see docs/evaluation.md.")] = "shapes-and-digits",
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Rows of each group, of suites that make their own.")] = 400,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for report.json, report.md and example images.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Instead of measuring, compare two reports of the same data, sample by sample.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of drawn images, for suites that look at some.")] = None,
    references: Annotated[Path | None, typer.Option(help="Folder of real images, originals of edits, or packages of emoji.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts of a judged benchmark, as it publishes them.")] = None,
    features: Annotated[str | None, typer.Option(help="Network of FID: folder of a vision model, or Inception's file of weights.")] = None,
    classes: Annotated[str | None, typer.Option(help="Network of IS: folder of an image classifier, or Inception's file of weights.")] = None,
    clip: Annotated[str | None, typer.Option(help="Network of the CLIP-score: folder of a CLIP.")] = None,
    lpips: Annotated[
        Path | None, typer.Option(help="Weights of LPIPS's network, as torchvision has them; leaves LPIPS out by default.")
    ] = None,
    lpips_net: Annotated[str, typer.Option(help="Which network these weights are of: alex or vgg.")] = "alex",
    judge: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server, or the folder of a model that judges here.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Name of the judge's model on the server, where it has several.")] = None,
    judge_text: Annotated[Path | None, typer.Option(help="What to ask the judge, in place of our own words; see docs/evaluation.md.")] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Halves that intervals of FID and its like are made of; 0: no intervals.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows or images that are computed together.")] = 50,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Measure a model, or images that it drew, by a suite, with confidence intervals; or compare two reports.

    \b
    Examples:
      vargpt evaluate
      vargpt evaluate --model runs/tiny/stage3 --number 200 -o report
      vargpt evaluate --suite emoji --model runs/emoji/stage3 --references data/emoji -o report
      vargpt evaluate --suite sets --images drawn --references real --features ./dinov2-large -o report
      vargpt evaluate --suite wise --images wise --prompts data --judge http://localhost:8000/v1 -o report
      vargpt evaluate --compare report other_report
    """
    if compare is not None:
        return compare_files(*compare, output)
    if folder is not None and context.get_parameter_source("model").name == "COMMANDLINE":
        raise ValueError(f"Give the model once, as {folder} or as --model {model}.")
    model = model if folder is None else folder
    if suite not in SUITES:
        raise ValueError(f"--suite is {suite!r}; it must be one of {', '.join(SUITES)}.")
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"--output is {output}, a file; give a folder for report.json, report.md and images.")
    asked = Asked(**{name: value for name, value in locals().items() if name in Asked.__annotations__})
    measure, needed = SUITES[suite]
    if missing := [name for name in needed if getattr(asked, name) is None]:
        raise ValueError(f"--suite {suite} needs {' and '.join(f'--{name}' for name in missing)}.")
    measure(asked)


def compare_files(first: Path, second: Path, output: Path | None) -> None:
    """Prints how two reports differ; writes it to a JSON file as well where `output` names one."""
    with needs_extra("Comparing needs", "evaluate"):
        import scipy  # noqa: F401

        from ..evaluation.compare import compare_reports, comparison_page
        from ..evaluation.report import read_report
    reports = read_report(first), read_report(second)
    compared = compare_reports(*reports)
    typer.echo(comparison_page(*reports, compared), nl=False)
    if output is not None:
        output.write_text(json.dumps({name: one.to_dict() for name, one in compared.items()}, indent=1, sort_keys=True) + "\n")
