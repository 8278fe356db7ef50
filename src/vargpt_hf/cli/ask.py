"""`vargpt ask`: an image and a question in, an answer out."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, DType, Model, load


def ask(
    image: Annotated[Path, typer.Argument(help="The image's file.")],
    text: Annotated[str, typer.Argument(help="The question.")],
    model: Model = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Answer the question TEXT about IMAGE.

    \b
    Examples:
      vargpt ask turtle.png "what is it"
      vargpt ask digit.png "which digit is this"
    """
    if not image.is_file():
        raise ValueError(f"There is no file {image}.")
    vargpt, processor = load(model, device, dtype)
    from ..inference.drawing import answer
    from ..modeling.settings_vargpt import user_turn

    (turn,) = user_turn(text)
    content = [{"type": "image", "path": str(image)}, {"type": "text", "text": turn["content"]}]
    settings = {"do_sample": False, "max_new_tokens": max_new_tokens, "streamer": answer_streamer(processor.tokenizer)}
    answer(vargpt, processor, [[{"role": "user", "content": content}]], "text", **settings)


def answer_streamer(tokenizer):
    """Prints an answer while it is made, without the space that the chat template writes before it."""
    from transformers import TextStreamer

    class Answer(TextStreamer):
        begun = False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            text = text if self.begun else text.lstrip()
            self.begun = self.begun or bool(text)
            super().on_finalized_text(text, stream_end)

    return Answer(tokenizer, skip_prompt=True, skip_special_tokens=True)
