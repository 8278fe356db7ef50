"""The one way to draw or to ask: a batch of chats in, images, texts or both out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import BatchFeature

from ..modeling.settings_vargpt import user_turn

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..modeling.outputs_vargpt import VargptGenerateOutput
    from ..processing.processing_vargpt import VargptProcessor

Chat = list[dict[str, Any]]


@dataclass(frozen=True)
class Answers:
    """What a model answered to a batch of chats.

    Args:
        output: of `generate`: token ids, codes, the row of each image.
        prompt_length: tokens of each prompt in `output.sequences`, padding included.
        processor: of the model.
    """

    output: "VargptGenerateOutput"
    prompt_length: int
    processor: "VargptProcessor"

    @cached_property
    def images(self) -> list[Image.Image]:
        """All drawn images, by row, then in drawing order; `output.output_image_rows` says whose each is."""
        pixels = self.output.output_images
        return self.processor.output_image_processor.post_process(pixels) if pixels is not None and len(pixels) else []

    @cached_property
    def parts(self) -> list[list[dict[str, Any]]]:
        """For each row, texts and images in order: the content of an assistant message (`VargptProcessor.post_process_interleaved`)."""
        return self.processor.post_process_interleaved(self.output, prompt_length=self.prompt_length)

    @property
    def texts(self) -> list[str]:
        """For each row its text, without its images."""
        return ["".join(part["text"] for part in parts if part["type"] == "text") for parts in self.parts]


def prompt_inputs(processor: "VargptProcessor", chats: Sequence[str | Chat], images: Sequence[Any] | None = None) -> BatchFeature:
    """Model inputs of chats that the model is to answer, padded on the left to the longest.

    Args:
        chats: each a list of messages, or a text for one user's turn.
        images: for each chat those that its messages stand placeholders for; None where the messages hold their images themselves.

    Raises:
        TypeError: a chat of another type.
        ValueError: no chats, an empty text, or chats that the processor refuses.
    """
    if isinstance(chats, str) or not all(isinstance(chat, str | list) for chat in chats):
        raise TypeError("`chats` must be a list of chats, each a text or a list of messages.")
    if not chats:
        raise ValueError("`chats` is empty: give at least one chat to answer.")
    return processor.apply_chat_template(
        [user_turn(chat) if isinstance(chat, str) else chat for chat in chats],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, **({} if images is None else {"images": images})},
    )


def answer(
    model: "VargptForConditionalGeneration",
    processor: "VargptProcessor",
    chats: Sequence[str | Chat],
    generation_mode: str | None = None,
    *,
    images: Sequence[Any] | None = None,
    seeds: Sequence[int] | None = None,
    **settings,
) -> Answers:
    """Answers a batch of chats.

    Args:
        chats: see [`prompt_inputs`].
        generation_mode: "image" to draw one image for each chat, "text_image" to write a plan and then draw it, "text" to answer in words,
            "auto" to leave the choice to the model; None for the mode saved with the model, which is "auto" where none is.
        images: see [`prompt_inputs`].
        seeds: one for each chat, of everything random in its images, so that an image does not depend on its neighbors; pass `generator`
            instead to draw the whole batch from one.
        settings: of `generate`.

    Raises:
        TypeError, ValueError: as [`prompt_inputs`] and `generate`; both `seeds` and a `generator`, or another number of seeds than of
            chats; a batch that does not fit into the device's memory.
    """
    inputs = prompt_inputs(processor, chats, images).to(model.device)
    if seeds is not None:
        if "generator" in settings:
            raise ValueError("Give either `seeds` or a `generator`, not both.")
        if len(seeds) != len(chats):
            raise ValueError(f"There are {len(seeds)} seeds for {len(chats)} chats: give one for each.")
        settings["generator"] = [_generator(seed, model.device) for seed in seeds]
    try:
        output = model.generate(**inputs, generation_mode=generation_mode, return_dict_in_generate=True, **settings)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"A batch of {len(chats)} does not fit into the memory of {model.device}: take a smaller batch size.") from error
    return Answers(output, inputs["input_ids"].shape[1], processor)


def _generator(seed: int, device: torch.device) -> torch.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"A seed must be a whole number, got {seed!r}.")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"A seed must be from -2^63 to 2^64 - 1, which torch can take, got {seed}.")
    return torch.Generator(device).manual_seed(seed)


__all__ = ["Answers", "answer", "prompt_inputs"]
