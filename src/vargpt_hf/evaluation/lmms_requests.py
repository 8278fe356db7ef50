"""What lmms-eval asks, as chats and settings of ours; nothing here needs lmms-eval.

Its messages are OpenAI-like lists with `{"type": "image", "url": image}`; settings are those of generation with "until".
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..inference.drawing import answer

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

Chat = list[dict[str, Any]]
_OURS = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "min_new_tokens")
IMAGE_MARK = "<image>"


def chat_of(messages: Sequence[Mapping[str, Any]], system: str | None = None) -> Chat:
    """A chat of lmms-eval's messages: roles with parts of type "text" and "image".

    Args:
        messages: contents are texts or lists of parts; an image's "url" is an image, a path or a URL.
        system: put before, where the messages have no system turn.

    Raises:
        ValueError: video or audio, which VARGPT does not read.
    """
    chat = [{"role": message["role"], "content": _content(message["content"])} for message in messages]
    if system and (not chat or chat[0]["role"] != "system"):
        chat.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return chat


def _content(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = []
    for part in content:
        if part["type"] not in ("text", "image"):
            raise ValueError(f"VARGPT reads text and images only, and this task has {part['type']}: choose another task.")
        if part["type"] == "text":
            parts.append({"type": "text", "text": part["text"]})
        else:
            image = part["url"] if "url" in part else part["image"]
            parts.append({"type": "image", "path" if isinstance(image, str) and Path(image).exists() else "image": image})
    return parts


def simple_chat(context: str, images: Sequence[Any], system: str | None = None) -> Chat:
    """A chat of one user's turn: images at their marks `<image>` in the text where there are as many, else before it."""
    pieces = context.split(IMAGE_MARK)
    parts: list[dict[str, Any]]
    if images and len(pieces) == len(images) + 1:
        parts = [{"type": "text", "text": pieces[0]}]
        for image, piece in zip(images, pieces[1:]):
            parts += [{"type": "image", "url": image}, {"type": "text", "text": piece}]
    else:
        parts = [*({"type": "image", "url": image} for image in images), {"type": "text", "text": context}]
    return chat_of([{"role": "user", "content": [part for part in parts if part.get("text") != ""] or [parts[-1]]}], system)


def settings_of(asked: Mapping[str, Any], max_new_tokens: int) -> tuple[dict[str, Any], list[str]]:
    """Settings of `generate`, and the strings that end an answer.

    Args:
        asked: of a task: what `generate` does not know is left out, as lmms-eval's own models do.
        max_new_tokens: where the task says nothing.
    """
    settings = {name: value for name, value in asked.items() if name in _OURS and value is not None}
    settings.setdefault("max_new_tokens", max_new_tokens)
    settings.setdefault("do_sample", settings.get("temperature", 0) > 0)
    if not settings["do_sample"]:
        for name in ("temperature", "top_p", "top_k"):
            settings.pop(name, None)
    until = asked.get("until") or []
    return settings, [until] if isinstance(until, str) else [stop for stop in until if stop]


def batches(chats: Sequence[Chat], asked: Sequence[Mapping[str, Any]], batch_size: int) -> Iterator[list[int]]:
    """Indices of chats that can be answered together: alike in settings, and all with images or all without."""
    groups: dict[Any, list[int]] = {}
    for index, (chat, settings) in enumerate(zip(chats, asked)):
        has_images = any(part["type"] == "image" for message in chat for part in message["content"])
        groups.setdefault((has_images, json.dumps(settings, sort_keys=True, default=str)), []).append(index)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def answer_texts(
    model: "VargptForConditionalGeneration", processor: "VargptProcessor", chats: Sequence[Chat], asked: Mapping[str, Any], max_new_tokens: int
) -> list[str]:
    """Answers in words to chats of one batch."""
    settings, until = settings_of(asked, max_new_tokens)
    return [cut(text.strip(), until) for text in answer(model, processor, chats, "text", **settings).texts]


def cut(text: str, until: Iterable[str]) -> str:
    """A text up to the first of the strings that end it."""
    ends = [text.find(stop) for stop in until if stop in text]
    return text[: min(ends)].rstrip() if ends else text


def answer_drawings(
    model: "VargptForConditionalGeneration",
    processor: "VargptProcessor",
    chats: Sequence[Chat],
    mode: str,
    files: Sequence[Path],
    seeds: Sequence[int],
    plan_tokens: int,
) -> list[str]:
    """Draws for chats of one batch; answers as drawing tasks of lmms-eval want them, `{"text", "images": [path]}` in JSON.

    Args:
        mode: "image", "text_image" or "auto".
        files: of each chat's image, without the ending.
        seeds: one for each chat.
        plan_tokens: text that may come before an image.
    """
    settings = {} if mode == "image" else {"max_new_tokens": plan_tokens + 2}
    drawn = answer(model, processor, chats, mode, seeds=seeds, **settings)
    found = []
    for parts, file in zip(drawn.parts, files):
        images = [part["image"] for part in parts if part["type"] == "output_image"]
        paths = [file.with_name(f"{file.name}_{number}.png") for number in range(len(images))]
        for image, path in zip(images, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        text = "".join(part["text"] for part in parts if part["type"] == "text").strip()
        found.append(json.dumps({"text": text, "images": [str(path) for path in paths]}))
    return found


@torch.no_grad()
def losses(
    model: "VargptForConditionalGeneration", processor: "VargptProcessor", chats: Sequence[Chat], continuations: Sequence[str]
) -> list[tuple[float, bool]]:
    """For each chat the loss of a continuation, and whether it is what the model would say.

    The loss is the mean over tokens of the negative log-likelihood, end of turn included: what lmms-eval's own models return and its
    evaluator takes the smallest of, though its interface speaks of log-likelihoods.
    """
    whole = [[*chat, {"role": "assistant", "content": [{"type": "text", "text": said.strip()}]}] for chat, said in zip(chats, continuations)]
    inputs = processor.apply_chat_template(
        whole, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True, processor_kwargs={"padding": True}
    )
    # Of several turns of the assistant's, the last one counts.
    said = torch.as_tensor(inputs.pop("assistant_masks")).bool()[:, 1:]
    gaps = (~said).long().flip(1).cumsum(1).flip(1)  # how many tokens behind are not the assistant's
    said &= gaps == gaps.masked_fill(~said, gaps.max() + 1).amin(1, keepdim=True)
    inputs = inputs.to(model.device)
    logits = model(**inputs).logits[:, :-1].float()
    targets = inputs["input_ids"][:, 1:]
    scores = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0].cpu()
    greedy = (logits.argmax(-1) == targets).cpu()
    return [(-scores[row, said[row]].mean().item(), bool(greedy[row, said[row]].all())) for row in range(len(whole))]


__all__ = ["answer_drawings", "answer_texts", "batches", "chat_of", "cut", "losses", "settings_of", "simple_chat"]
