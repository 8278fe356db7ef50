"""`vargpt evaluate`: a suite of metrics, a report that says how they were made, and comparisons of such reports."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, DType, Model, Seed, load, model_folder, needs_extra


def evaluate(
    model: Model = None,
    suite: Annotated[str, typer.Option(help="What to measure: shapes-and-digits, the data of vargpt-tiny.")] = "shapes-and-digits",
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Rows of each group.")] = 400,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for report.json, report.md and example images.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Instead of measuring, compare two reports of the same data, sample by sample.")
    ] = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Measure a model by a suite, with confidence intervals; or compare two reports.

    \b
    Examples:
      vargpt evaluate
      vargpt evaluate --model runs/tiny/stage3 --number 200 -o report
      vargpt evaluate --compare report other_report
    """
    if compare is not None:
        return compare_files(*compare, output)
    if suite not in SUITES:
        raise ValueError(f"--suite is {suite!r}; it must be one of {', '.join(SUITES)}.")
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"--output is {output}, a file; give a folder for report.json, report.md and images.")
    SUITES[suite](model=model, number=number, seed=seed, output=output, device=device, dtype=dtype)


def shapes_and_digits(model: str | None, number: int, seed: int, output: Path | None, device: str, dtype: str) -> None:
    """The suite of vargpt-tiny."""
    with needs_extra("The judges need", "evaluate"):
        from ..evaluation.provenance import of_generation, of_model, of_prompts
        from ..evaluation.shapes_and_digits import evaluate as measure
        from ..evaluation.started import Started
        from ..tiny.digits import load_split

        load_split("train")
    begun = Started("shapes-and-digits")
    vargpt, processor = load(model, device, dtype)
    result = measure(vargpt, processor, number, seed)
    begun.finish(
        result,
        output,
        model=of_model(vargpt, *model_folder(model)),
        prompts=of_prompts(processor),
        generate=of_generation(vargpt, {"max_new_tokens": 2}),
        device=vargpt.device,
    )


SUITES = {"shapes-and-digits": shapes_and_digits}


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
