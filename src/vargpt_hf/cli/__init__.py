"""The `vargpt` command: one file for each of its commands.

Nothing here imports torch or Transformers: commands do, in their bodies, when they have checked what they can without.
"""

import signal
import sys
from typing import Annotated

import typer

from .. import __version__
from .ask import ask
from .card import card
from .chat import chat
from .compose import compose
from .convert import convert
from .data import data
from .demo import demo
from .draw import draw
from .encode import encode
from .evaluate import evaluate
from .info import info
from .models import models
from .serve import serve
from .tokenizer import tokenizer
from .train import train

app = typer.Typer(
    help="VARGPT: one model that understands images and draws them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (draw, ask, chat, encode, compose, convert, card, serve, demo, evaluate, info, models):
    app.command()(command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
app.add_typer(data, name="data")
app.add_typer(tokenizer, name="tokenizer")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vargpt-hf {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command; an error that a person can mend is said in one line, without a traceback.

    Exits with 1 after an error, 2 where the command was called wrongly, 130 after SIGINT and 143 after SIGTERM.
    """
    signal.signal(signal.SIGTERM, _end)
    try:
        app()
    except ModuleNotFoundError as error:
        sys.exit(f'vargpt: this needs the package {error.name}, which is not installed: pip install "vargpt-hf[train]"')
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.exit(f"vargpt: {' '.join(str(error).split())}")


def _end(number: int, _frame: object) -> None:
    """Ends as an interrupt from the keyboard does, so that what is half done is tidied up."""
    raise SystemExit(128 + number)


__all__ = ["app", "main"]
