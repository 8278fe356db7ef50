"""One row, in any form in which people write it → the one form that trains: turns of parts, and their images apart.

[`read_row`] and [`read_pair`] are that door for everyone: datasets in files, datasets given to the trainers in Python, `vargpt data check` and
`vargpt encode`. Of messages they understand what `VargptProcessor.apply_chat_template` does, by its own functions, and marks in texts besides.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from ..processing.chat_vargpt import IMAGE_KEYS, clean_message, image_of_part, refuse_half_characters
from ..processing.image_loading_vargpt import MAX_PIXELS, bytes_of_base64, open_image, to_rgb

Row = dict[str, Any]
Find = Callable[[Any], Any]

CHAT_COLUMNS = ("messages", "conversations", "prompt", "completion")
IMAGE_COLUMNS = ("images", "image")
CAPTIONED_COLUMNS = ("image", "images", "jpg", "jpeg", "png", "webp")
DRAWN_COLUMNS = ("output_images", "output_image")
CAPTION_COLUMNS = ("text", "caption", "txt", "prompt")
PROMPTS = {"draw": "{}", "describe": "describe the picture"}
SIDES = ("chosen", "rejected")

_MARKS = {"<image>": "image", "<image_gen>": "output_image"}
_NAMED_IMAGES = {*CAPTIONED_COLUMNS, *DRAWN_COLUMNS, *(f"{side}_{name}" for side in SIDES for name in ("images", "image"))}


def read_row(row: Mapping[str, Any], find: Find | None = None, task: str = "draw", prompt: str | None = None) -> Row:
    """A row `{"messages", "images", "output_images"}` of whatever its columns tell; columns that are None or empty count as missing.

    | columns | what they are |
    |---|---|
    | `messages`, `images` | chats of parts, or of texts with a mark for every image: `<image>` to read, `<image_gen>` to draw |
    | `prompt`, `completion`, `images` | TRL's, as chats or texts |
    | `conversations`, `images` | LLaVA's turns `{"from", "value"}`, or `{"role", "content"}` |
    | an image (`image`, `jpg`, ...), `text` (or caption, txt, ...) | captioned images |
    | `json` | a mapping, or its text, with such a chat or caption |

    Images stand in `images` or `image` (of captioned ones also jpg, png, ...), alone or in a list, each a path, URL, base64 text, bytes, a
    dict of `bytes` or `path`, a PIL image or an array; or in the parts themselves (`image`, `url`, `path`, `base64`, OpenAI's `image_url`).
    Images to draw stand in `output_images` or `output_image`; where texts have marks, `images` may list both kinds. Texts without marks
    show all images at the start of the first turn of the user, as with TRL and LLaVA.

    Args:
        row: its columns.
        find: makes of what the row has for an image one that `datasets.Image` takes; `stored_image` by default.
        task: of captioned images: "draw" them from their captions, or "describe" them in these.
        prompt: what the user says of a captioned image; "{}" stands for the caption where it is to be drawn.

    Returns:
        Parts have a `type` and a `text`, None of images. `output_image_codes` and what belongs to them are kept, where there are some.

    Raises:
        ValueError: columns of none of these kinds, more or fewer images than placeholders, or a column with images that nothing uses.
        TypeError: a row, message, content or text of a wrong type.
    """
    given = _given(row)
    if "json" in given and not _has_chat(given):
        given = {**_unpacked(given["json"]), **{name: value for name, value in given.items() if name != "json"}}
    turns, used = _turns_of(given)
    if turns is None:
        return _captioned(given, find or stored_image, task, PROMPTS[task] if prompt is None else prompt)
    images, drawn = _listed(given, CAPTIONED_COLUMNS), _listed(given, DRAWN_COLUMNS)
    _refuse_unused(given, {*used, *CAPTIONED_COLUMNS, *DRAWN_COLUMNS})
    read = _Chat(turns).sorted(images, drawn, given.get("output_image_codes"), find or stored_image)
    return read | _schedules(given) | _fingerprint(given)


def read_pair(row: Mapping[str, Any], find: Find | None = None) -> Row:
    """A row `{"prompt", "chosen", "rejected", "images", "chosen_images", "rejected_images"}` of parts, for preference tuning.

    Prompt and answers are texts, with marks or without, or lists of messages, as in [`read_row`]; where there is no prompt, it is what both
    answers begin with. Codes (`chosen_codes`, `rejected_codes`, `image_tokenizer_fingerprint`) are kept.

    Raises:
        ValueError: no answers, other numbers of images than placeholders for them, or a column with images that nothing uses.
        TypeError: a row, message, content or text of a wrong type.
    """
    given, find = _given(row), find or stored_image
    if missing := [side for side in SIDES if side not in given]:
        raise ValueError(f"a pair needs the columns `chosen` and `rejected`; {' and '.join(missing)} is missing or empty.")
    answers = {side: _as_turns(given[side], "assistant", side) for side in SIDES}
    prompt = _as_turns(given["prompt"], "user", "prompt") if "prompt" in given else _common_start(answers)
    if not prompt:
        raise ValueError("a pair needs a `prompt`, or answers that begin with the same messages.")
    read = _Chat(prompt).sorted(_listed(given, IMAGE_COLUMNS), None, None, find)
    if read["output_images"]:
        raise ValueError("the prompt of a pair draws (type 'output_image'); only answers may draw. Show it as an image to read.")
    pair = {"prompt": read["messages"], "images": read["images"]}
    used = {"prompt", *SIDES, *IMAGE_COLUMNS}
    for side in SIDES:
        columns, codes = (f"{side}_images", f"{side}_image"), given.get(f"{side}_codes")
        used |= {*columns}
        answer = _Chat(answers[side]).sorted([], _listed(given, columns), codes, find, names=(f"{side}'s images", columns[0], f"{side}_codes"))
        pair |= {side: answer["messages"], f"{side}_images": answer["output_images"]}
        if "output_image_codes" in answer:
            pair[f"{side}_codes"] = answer["output_image_codes"]
    _refuse_unused(given, used)
    return pair | _fingerprint(given)


def parts_of_text(text: str) -> list[dict[str, str | None]]:
    """The parts of a text with marks; line breaks next to a mark go, since the chat template sets its own."""
    parts: list[dict[str, str | None]] = []
    for piece in re.split(f"({'|'.join(map(re.escape, _MARKS))})", text.strip()):
        if piece in _MARKS:
            parts.append({"type": _MARKS[piece], "text": None})
        elif piece.strip("\n"):
            parts.append({"type": "text", "text": piece.strip("\n")})
    return parts


def can_be_read(columns: set[str]) -> bool:
    """Whether rows of these columns can be of a kind that [`read_row`] knows."""
    chat = bool({"messages", "conversations", "json"} & columns) or {"prompt", "completion"} <= columns
    return chat or bool(columns & set(CAPTIONED_COLUMNS)) and bool(columns & {*CAPTION_COLUMNS, "json"})


def stored_image(image: Any) -> dict[str, Any]:
    """What a row has for an image as `{"bytes", "path"}`, one of which is None; files and addresses (both are paths) are not opened yet.

    Raises:
        ValueError: something that is no image.
    """
    if isinstance(image, Mapping):
        name, image = next(((key, image[key]) for key in ("bytes", *IMAGE_KEYS) if image.get(key) is not None), (None, None))
        if name is None:
            raise ValueError("an image is a dict with neither `bytes` nor `path`.")
        return stored_image(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(image), "path": None}
    if isinstance(image, (PILImage.Image, np.ndarray, torch.Tensor)):
        file = io.BytesIO()
        to_rgb(open_image(image, "an image"), "an image", MAX_PIXELS).save(file, "PNG", compress_level=1)
        return {"bytes": file.getvalue(), "path": None}
    if hasattr(image, "__fspath__"):
        image = image.__fspath__()
    if isinstance(image, str):
        refuse_half_characters(image, "an image's path")
    else:
        raise ValueError(f"an image is a {type(image).__name__}; give a path, URL, base64 text, bytes, a dict of these, or a PIL image.")
    encoded = bytes_of_base64(image)
    return {"bytes": encoded, "path": image if encoded is None else None}


class _Chat:
    """Turns of a row, cleaned, with the images that their parts carry."""

    def __init__(self, turns: list[Any]):
        # Of a text the marks are parts; whether any turn is a text says how images may be listed.
        self.has_texts = False
        self.messages = []
        for index, turn in enumerate(turns):
            message = clean_message(turn, f"message {index}")
            content = turn.get("content") if turn.get("content") is not None else turn.get("value")
            if content is None or isinstance(content, str):
                self.has_texts |= content is not None
                message["content"] = parts_of_text(content or "")
            self.messages.append(message)

    def parts(self, kind: str | None = None) -> list[Row]:
        """The parts that are images, of one kind or of both, in reading order."""
        every = [part for message in self.messages for part in message["content"] if part["type"] != "text"]
        return [part for part in every if kind in (None, part["type"])]

    def sorted(
        self,
        images: list[Any],
        drawn: list[Any] | None,
        codes: Any,
        find: Find,
        names: tuple[str, str, str] = ("images", "output_images", "output_image_codes"),
    ) -> Row:
        """The row: each part's own image, or the next that is listed for it, after their numbers were held against each other."""
        if self.has_texts and images and not self.parts():
            first = next((message for message in self.messages if message["role"] == "user"), self.messages[0])
            first["content"] = [{"type": "image", "text": None} for _ in images] + first["content"]
        codes = [] if codes is None else _checked_codes(codes, names[2])
        own_codes = _checked_codes([part["codes"] for part in self.parts("output_image") if "codes" in part], "codes of parts")
        if own_codes and (codes or drawn or len(own_codes) < len(self.parts("output_image"))):
            raise ValueError(f"some output_image parts have codes and others not, or there is a column {names[1]} or {names[2]} besides.")
        num_codes = len(codes or own_codes)
        waiting = {kind: [part for part in self.parts(kind) if image_of_part(part) is None] for kind in ("image", "output_image")}
        counts = {kind: len(parts) for kind, parts in waiting.items()}
        if num_codes and drawn:
            raise ValueError(f"there are both {names[1]} and {names[2]}: leave one of them out.")
        if self.has_texts and not drawn and not num_codes:  # marks sort what is listed together
            every = [part for part in self.parts() if image_of_part(part) is None]
            if len(every) != len(images):
                raise ValueError(f"{len(every)} marks of images in the texts, but {len(images)} images.")
            listed = {"image": [], "output_image": []}
            for part, image in zip(every, images):
                listed[part["type"]].append(image)
        else:
            listed = {"image": images, "output_image": drawn or []}
            given = {"image": len(images), "output_image": num_codes or len(listed["output_image"])}
            if given != counts:
                raise ValueError(
                    f"the turns have {counts['image']} images to read and {counts['output_image']} to draw, but there are "
                    f"{given['image']} `{names[0]}` and {given['output_image']} `{names[2] if num_codes else names[1]}`."
                )
        found = {kind: list(self._in_order(kind, listed[kind], find)) if not (num_codes and kind == "output_image") else [] for kind in listed}
        messages = [
            {"role": message["role"], "content": [{"type": part["type"], "text": part.get("text")} for part in message["content"]]}
            for message in self.messages
        ]
        row = {"messages": messages, "images": found["image"], "output_images": found["output_image"]}
        return row | ({"output_image_codes": codes or own_codes} if num_codes else {})

    def _in_order(self, kind: str, listed: list[Any], find: Find) -> Iterator[Any]:
        rest = iter(listed)
        for part in self.parts(kind):
            own = image_of_part(part)
            yield find(next(rest) if own is None else own)


def _given(row: Mapping[str, Any]) -> Row:
    """The row's columns that are not None or empty."""
    if not isinstance(row, Mapping):
        raise TypeError(f"a row is a {type(row).__name__}; it must be a dict of columns.")
    return {
        name: value
        for name, value in row.items()
        if value is not None and not (isinstance(value, (str, bytes, list, tuple, dict)) and not value)
    }


def _has_chat(given: Row) -> bool:
    return "messages" in given or "conversations" in given or {"prompt", "completion"} <= set(given)


def _unpacked(value: Any) -> Row:
    """The chat or the caption in a column `json`."""
    if isinstance(value, (str, bytes)):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"the column 'json' is not JSON: {error}.") from error
    return (
        {name: each for name, each in _given(value).items() if name in (*CHAT_COLUMNS, *CAPTION_COLUMNS)} if isinstance(value, Mapping) else {}
    )


def _turns_of(given: Row) -> tuple[list[Any] | None, set[str]]:
    """The turns, and the columns that they come from; None where the row is no chat."""
    if "messages" in given:
        return _as_turns(given["messages"], None, "messages"), {"messages"}
    if {"prompt", "completion"} <= set(given):
        turns = _as_turns(given["prompt"], "user", "prompt") + _as_turns(given["completion"], "assistant", "completion")
        return turns, {"prompt", "completion"}
    if "conversations" in given:
        return _as_turns(given["conversations"], None, "conversations"), {"conversations"}
    return None, set()


def _as_turns(turns: Any, role: str | None, column: str) -> list[Any]:
    """A column's turns; a text is one of `role`."""
    if isinstance(turns, str) and role is not None:
        return [{"role": role, "content": turns}]
    if not isinstance(turns, (list, tuple)):
        raise TypeError(f"the column {column!r} is a {type(turns).__name__}; it must be a list of messages{' or a text' if role else ''}.")
    return list(turns)


def _common_start(answers: dict[str, list[Any]]) -> list[Any]:
    """The messages that both answers begin with, which are taken off them."""
    chosen, rejected = answers["chosen"], answers["rejected"]
    length = 0
    while length < min(len(chosen), len(rejected)) - 1 and chosen[length] == rejected[length]:
        length += 1
    prompt = chosen[:length]
    answers["chosen"], answers["rejected"] = chosen[length:], rejected[length:]
    return prompt


def _listed(given: Row, columns: tuple[str, ...]) -> list[Any]:
    """The images of the one of several columns that has some."""
    having = [name for name in columns if name in given]
    if len(having) > 1:
        raise ValueError(f"the columns {' and '.join(map(repr, having))} both hold images: put all into one, in reading order.")
    if not having:
        return []
    value = given[having[0]]
    images = list(value) if isinstance(value, (list, tuple)) else [value]
    for index, image in enumerate(images):
        if image is None or isinstance(image, (list, tuple)):
            raise ValueError(f"{having[0]}[{index}] is {'None' if image is None else 'a list'}, not an image.")
    return images


def _refuse_unused(given: Row, used: set[str]) -> None:
    for name, value in given.items():
        if name not in used and (name in _NAMED_IMAGES or holds_image(value)):
            raise ValueError(
                f"the column {name!r} holds an image, but nothing in the row uses it: call the column `images` (or `output_images`, of "
                "images to draw), or remove it."
            )


def holds_image(value: Any) -> bool:
    """Whether a column's value is plainly an image, or a list that begins with one."""
    if isinstance(value, (list, tuple)):
        return bool(value) and holds_image(value[0])
    if isinstance(value, Mapping):
        return set(value) == {"bytes", "path"} and any(each is not None for each in value.values())
    return isinstance(value, PILImage.Image) or isinstance(value, str) and value.startswith("data:image/")


def _captioned(given: Row, find: Find, task: str, prompt: str) -> Row:
    """A captioned image as a row."""
    if not any(name in given for name in CAPTIONED_COLUMNS):
        raise ValueError(
            f"rows have the columns {', '.join(sorted(map(str, given))) or '(none)'}, of which none tells what to do. Known are `messages`, "
            "`prompt` and `completion`, `conversations`, or an image with a caption."
        )
    column = next((name for name in CAPTION_COLUMNS if name in given), None)
    images = _listed(given, CAPTIONED_COLUMNS)
    if len(images) != 1:
        raise ValueError(f"a captioned row has one image, but there are {len(images)} images.")
    if column is None:
        raise ValueError(f"there is no caption in any of the columns {', '.join(CAPTION_COLUMNS)}.")
    words = given[column]
    if isinstance(words, (list, tuple)) and len(words) == 1:
        words = words[0]
    words = words.decode(errors="replace") if isinstance(words, bytes) else words
    if not isinstance(words, str):
        raise TypeError(f"the caption in {column!r} is a {type(words).__name__}; it must be a text.")
    if not words.strip():
        raise ValueError(f"there is no caption in {column!r}.")
    _refuse_unused(given, {column, *CAPTIONED_COLUMNS})
    shown = [find(images[0])]
    text = {"type": "text", "text": words.strip() if task == "describe" else prompt.replace("{}", words.strip())}
    if task == "draw":
        turns = [("user", [text]), ("assistant", [{"type": "output_image", "text": None}])]
        return {"messages": [{"role": role, "content": parts} for role, parts in turns], "images": [], "output_images": shown}
    turns = [("user", [{"type": "image", "text": None}, {"type": "text", "text": prompt}]), ("assistant", [text])]
    return {"messages": [{"role": role, "content": parts} for role, parts in turns], "images": shown, "output_images": []}


def _schedules(given: Row) -> Row:
    """The scale schedules of a row's codes, where it says them."""
    found = given.get("output_image_schedule_ids")
    if found is None:
        return {}
    ids = _as_list(found, "output_image_schedule_ids")
    if not all(isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**15 for number in ids):
        raise ValueError(f"`output_image_schedule_ids` must be numbers of schedules from 0, one for each image, got {str(ids)[:80]}.")
    return {"output_image_schedule_ids": ids}


def _fingerprint(given: Row) -> Row:
    """Of the image tokenizer that made a row's codes."""
    found = given.get("image_tokenizer_fingerprint")
    if not isinstance(found, str | None):
        raise TypeError(f"`image_tokenizer_fingerprint` is a {type(found).__name__}; it must be a text.")
    return {} if found is None else {"image_tokenizer_fingerprint": found}


def _checked_codes(codes: Any, name: str) -> list[list[int]]:
    """Codes of several images as lists of whole numbers that 32 bits hold."""
    checked = []
    for each in _as_list(codes, name):
        numbers = _as_list(each, f"{name}[{len(checked)}]")
        if not all(isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**32 for number in numbers):
            raise ValueError(f"{name}[{len(checked)}] must be whole numbers from 0 to 2**32 - 1.")
        checked.append(numbers)
    return checked


def _as_list(value: Any, name: str) -> list[Any]:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} is a {type(value).__name__}; codes are one list of whole numbers for each image.")
    return list(value)
