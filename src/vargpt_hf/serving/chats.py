"""OpenAI's messages to the chats of the processor, and answers back to OpenAI's messages."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from .errors import ApiError
from .reading import RequestImages

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def read_chat(messages: Sequence[dict[str, Any]], images: RequestImages) -> tuple[list[dict[str, Any]], list[str]]:
    """The chat of a request's messages, its images decoded, and all its texts.

    Images of the assistant are such as it drew; where they stand is said by `content_parts`, as this server's answers have it, else they
    stand behind the text.

    Raises:
        ApiError: 400 for a message that is not understood.
    """
    chat, texts = [], []
    for index, message in enumerate(messages):
        where, role = f"`messages[{index}]`", message.get("role")
        if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
            raise ApiError(400, f"{where} is about tools, and this model calls none.", "unsupported_parameter", "messages")
        if not isinstance(role, str) or role not in _ROLES:
            shown = repr(role)[:40]
            raise ApiError(400, f"{where} has the role {shown}; roles are system, user and assistant.", "invalid_value", "messages")
        kind = "output_image" if role == "assistant" else "image"
        parts = _parts_of(message, where)
        content = []
        for part in parts:
            if isinstance(part, str):
                texts.append(part)
                content.append({"type": "text", "text": part})
            else:
                content.append({"type": kind, "image": images.from_url(part["url"], f"The image in {where}")})
        chat.append({"role": _ROLES[role], "content": content})
    if chat[-1]["role"] == "system" or not any(part for message in chat for part in message["content"]):
        raise ApiError(400, "There is nothing to answer: end `messages` with what a user says.", "invalid_value", "messages")
    if chat[-1]["role"] == "assistant":
        raise ApiError(400, "The last message is the assistant's; end `messages` with what a user says.", "invalid_value", "messages")
    return chat, texts


def _parts_of(message: dict[str, Any], where: str) -> list[str | dict[str, Any]]:
    """Texts, and `{"url"}` for images, of one message in order."""
    images = message.get("images") or []
    if not isinstance(images, list):
        raise ApiError(400, f"`images` of {where} must be a list.", "invalid_value", "messages")
    if message["role"] == "assistant" and isinstance(message.get("content_parts"), list):
        return [_ordered_part(part, images, where) for part in message["content_parts"]]
    content = message.get("content")
    if content is None or isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        raise ApiError(400, f"`content` of {where} must be a text or a list of parts.", "invalid_value", "messages")
    return [_part(part, where) for part in (*content, *images)]


def _part(part: Any, where: str) -> str | dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return part[kind]
    if kind == "image_url":
        url = part.get("image_url")
        return {"url": url.get("url") if isinstance(url, dict) else url}
    shown = repr(kind if isinstance(part, dict) else part)[:40]
    raise ApiError(400, f"{where} has a part of type {shown}; parts are text and image_url.", "invalid_value", "messages")


def _ordered_part(part: Any, images: list, where: str) -> str | dict[str, Any]:
    if isinstance(part, dict) and part.get("type") == "image":
        number = part.get("index")
        if not isinstance(number, int) or not 0 <= number < len(images):
            raise ApiError(400, f"`content_parts` of {where} names an image that `images` has not.", "invalid_value", "messages")
        return _part(images[number], where)
    return _part(part, where)


def image_entry(url: str, index: int) -> dict[str, Any]:
    """An image in `message.images` and `delta.images`."""
    return {"type": "image_url", "index": index, "image_url": {"url": url}}


def message_of(parts: Sequence[str | Image.Image], urls: Sequence[str]) -> dict[str, Any]:
    """The assistant's message: its text, its images, and in `content_parts` how they follow one another.

    Args:
        parts: texts and images in order.
        urls: of the images.
    """
    texts = [part for part in parts if isinstance(part, str)]
    numbers, ordered = iter(range(len(urls))), []
    for part in parts:
        ordered.append({"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "index": next(numbers)})
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts or not urls else None, "refusal": None}
    if urls:
        message.update(images=[image_entry(url, index) for index, url in enumerate(urls)], content_parts=ordered)
    return message


__all__ = ["image_entry", "message_of", "read_chat"]
