"""`vargpt chat`: a conversation in the terminal, with images both ways."""

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, DType, Model, Seed, load

HELP = "Type a message. /image FILE adds an image to it, /draw TEXT asks for an image, /new starts over, /quit ends."


def chat(
    model: Model = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the drawn images.")] = Path("."),
    seed: Seed = 0,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Longest answer, in tokens; an image counts as two.")] = 256,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Talk with the model; drawn images are saved as image-1.png, image-2.png, …, under numbers that are still free.

    \b
    Examples:
      vargpt chat
      vargpt chat --model ./my-vargpt --output-dir drawings
    """
    if not output_dir.is_dir():
        raise ValueError(f"The folder {output_dir} does not exist: create it, or give another one.")
    vargpt, processor = load(model, device, dtype)
    import torch

    generator = torch.Generator(vargpt.device).manual_seed(seed)
    typer.echo(HELP)
    messages, attached, drawn = [], [], 0
    while (line := _read()) not in (None, "/quit"):
        command, _, rest = line.partition(" ")
        if command == "/new":
            messages, attached = [], []
        elif command == "/image":
            attached += _attachment(Path(rest.strip()))
        elif line.strip():
            settings = {"generation_mode": "image" if command == "/draw" else None, "max_new_tokens": max_new_tokens, "generator": generator}
            try:
                parts, turn = _answer(vargpt, processor, messages, attached, rest if command == "/draw" else line, **settings)
            except (ValueError, OSError) as error:  # a conversation too long, a file that is no image: said, and left out
                typer.echo(f"{error}", err=True)
                attached = []
                continue
            messages, attached = [*messages, turn, {"role": "assistant", "content": parts}], []
            drawn = _show(parts, output_dir, drawn)


def _answer(vargpt, processor, messages: list[dict], attached: list[dict], text: str, **settings) -> tuple[list[dict], dict]:
    """Content parts that answer a text with attached images after `messages`, and the turn that they answer."""
    from ..inference.drawing import answer
    from ..modeling.settings_vargpt import user_turn

    (turn,) = user_turn(text)
    turn["content"] = [*attached, {"type": "text", "text": turn["content"]}]
    return answer(vargpt, processor, [[*messages, turn]], **settings).parts[0], turn


def _read() -> str | None:
    """The next line, or None where there is none."""
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        return None


def _attachment(file: Path) -> list[dict]:
    """The content part of an image's file, or none, with a message, where it cannot be read."""
    if not file.is_file():
        typer.echo(f"There is no file {file}.", err=True)
        return []
    return [{"type": "image", "path": str(file)}]


def _show(parts: list[dict], output_dir: Path, drawn: int) -> int:
    """Prints the texts, saves the images under the next free numbers after `drawn`; returns the last number."""
    for part in parts:
        if part["type"] == "text":
            typer.echo(part["text"].strip())
        else:
            # Not only drawings of earlier conversations would go otherwise, but also files that this one has as attachments.
            drawn = next(number for number in count(drawn + 1) if not (output_dir / f"image-{number}.png").exists())
            file = output_dir / f"image-{drawn}.png"
            part["image"].save(file)
            typer.echo(f"[{file}]")
    return drawn
