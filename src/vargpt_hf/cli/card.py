"""`vargpt card`: the model card of a folder."""

from pathlib import Path
from typing import Annotated

import typer

from .options import load

DRAWING = "drawn.png"


def card(
    folder: Annotated[Path, typer.Argument(help="Folder of a VARGPT; README.md is written into it.")],
    name: Annotated[str | None, typer.Option(help="Hub id under which it will be found; the folder's name by default.")] = None,
    draw: Annotated[str | None, typer.Option(help=f"Draw this as an example, into {DRAWING}.")] = None,
    report: Annotated[
        list[Path] | None, typer.Option(help="Report of this model that `vargpt evaluate -o` wrote; may be given several times.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="What it was trained on; may be given several times.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the model that it was made from.")] = None,
    license: Annotated[str | None, typer.Option(help="SPDX name of the weights' license, such as apache-2.0.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=f"Replace a README.md and a {DRAWING} that are there.")] = False,
) -> None:
    """Write the model card of FOLDER.

    \b
    Examples:
      vargpt card ./my-vargpt --name me/my-vargpt --license apache-2.0
      vargpt card ./my-vargpt --draw "a red circle above a blue square" --report report
    """
    readme = folder / "README.md"
    for file in (readme, *([folder / DRAWING] if draw is not None else ())):
        if file.exists() and not overwrite:
            raise ValueError(f"{file} is there already: give --overwrite to replace it.")
    results, first = [], []
    for one in report or ():
        from ..evaluation.card import eval_results, headline
        from ..evaluation.report import read_report

        found = read_report(one)
        results += eval_results(found, folder)
        first += headline(found)
    vargpt, processor = load(str(folder.resolve()), device="cpu", dtype="float32")
    example = None
    if draw is not None:
        from ..inference.drawing import answer

        answer(vargpt, processor, [draw], "image", do_sample=False).images[0].save(folder / DRAWING)
        example = (draw, DRAWING)
    from ..modeling.card_vargpt import make_card

    written = make_card(
        vargpt,
        name or folder.resolve().name,
        license=license,
        base_model=base_model,
        datasets=data or (),
        results=results,
        headline=first,
        example=example,
    )
    written.save(readme)
    typer.echo(f"Saved {readme}")
