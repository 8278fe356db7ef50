"""The `vargpt` command: one file for each of its commands."""

import sys

import typer

from .ask import ask
from .card import card
from .chat import chat
from .compose import compose
from .convert import convert
from .data import data
from .draw import draw
from .encode import encode
from .evaluate import evaluate
from .info import info
from .serve import serve
from .train import train

app = typer.Typer(
    help="VARGPT: one model that understands pictures and draws them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (draw, ask, chat, encode, compose, convert, card, serve, evaluate, info):
    app.command()(command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
app.add_typer(data, name="data")


def main() -> None:
    """Runs the command; an error that a person can mend is said in one line, without a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit(f"vargpt: {error}")


__all__ = ["app", "main"]
