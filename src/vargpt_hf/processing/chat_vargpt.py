"""The chat format of VARGPT v1: its Jinja template; and for every template checks of conversations, and what it must be given."""

import re
from collections.abc import Callable, Mapping
from typing import Any

IMAGE_TOKEN = "<image>"
OUTPUT_IMAGE_START_TOKEN = "<|image_gen_start|>"
OUTPUT_IMAGE_TOKEN = "<|image_gen_pad|>"
OUTPUT_IMAGE_END_TOKEN = "<|image_gen_end|>"

RELEASED_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# The prompt of guidance by an unconditional prompt.
UNCONDITIONAL_CHAT = [{"role": "user", "content": ""}]

# What LLaVA's conversations call the roles.
ROLES = {"human": "user", "gpt": "assistant"}

# The keys under which a content part may carry its image, in order of preference.
IMAGE_KEYS = ("image", "url", "path", "base64")

# A turn is "USER: ..." or "ASSISTANT: ...</s>", and a space stands between turns. The space after "ASSISTANT:" belongs
# to the answer's first word, so that a prompt ends in a whole token; an image follows the colon at once, so that
# forcing one (image-start right after the prompt) is what training has seen.
_CHAT_TEMPLATE = """\
{%- macro render(parts, first_gap) -%}
    {%- if parts is string -%}
        {{- (first_gap if parts else '') + parts -}}
    {%- else -%}
        {%- for part in parts -%}
            {%- if part['type'] == 'text' -%}
                {{- (first_gap if loop.first else '') + part['text'] -}}
            {%- elif part['type'] == 'image' -%}
                {{- (first_gap if loop.first else '') + IMAGE -}}
                {{- '\\n' if loop.nextitem is defined and loop.nextitem['type'] == 'text' else '' -}}
            {%- elif part['type'] == 'output_image' -%}
                {{- DRAWING -}}
            {%- else -%}
                {{- raise_exception('Unknown content part type: ' + part['type']) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set has_system = messages[0]['role'] == 'system' -%}
{%- set system = render(messages[0]['content'], '') if has_system else DEFAULT_SYSTEM -%}
{%- set turns = messages[1:] if has_system else messages -%}
{{- system -}}
{%- for message in turns -%}
    {{- ' ' if system or not loop.first else '' -}}
    {%- if message['role'] == 'user' -%}
        {{- 'USER:' + render(message['content'], ' ') -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- 'ASSISTANT:' -}}
        {%- generation -%}{{- render(message['content'], ' ') + eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- raise_exception('Roles are user and assistant; system comes first; got ' + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{{- ' ASSISTANT:' if add_generation_prompt else '' -}}
"""


def make_chat_template(
    default_system: str | None = None,
    image_token: str = IMAGE_TOKEN,
    output_image_start_token: str = OUTPUT_IMAGE_START_TOKEN,
    output_image_token: str = OUTPUT_IMAGE_TOKEN,
    output_image_end_token: str = OUTPUT_IMAGE_END_TOKEN,
) -> str:
    """The chat template (Jinja) for given special tokens.

    `default_system` is the system text of chats that bring none (`RELEASED_SYSTEM_PROMPT` for released checkpoints).
    The beginning-of-sequence token is left to the tokenizer, which adds it where its model wants one.
    """
    literals = {
        "IMAGE": image_token,
        "DRAWING": output_image_start_token + output_image_token + output_image_end_token,
        "DEFAULT_SYSTEM": default_system or "",
    }
    return "".join(f"{{%- set {name} = {text!r} -%}}\n" for name, text in literals.items()) + _CHAT_TEMPLATE


def clean_chat(chat: list[dict], special_tokens: set[str], continued: bool) -> tuple[list[dict], list[dict]]:
    """A checked copy of one conversation without None values, and its `output_image` parts in reading order.

    In the copy all contents are lists of parts, empty texts are left out and `output_image` parts keep their type only.

    Args:
        chat: messages, in either form of `clean_message`.
        special_tokens: what no text may contain.
        continued: whether the last message is to be continued.

    Raises:
        ValueError: for an unknown role or part, a system message that is not the first, or a special token in a text.
        TypeError: for a conversation, message, content or text of a wrong type.
    """
    if not isinstance(chat, (list, tuple)):
        raise TypeError(f"A conversation is a {type(chat).__name__}; it must be a list of messages.")
    if not chat:
        raise ValueError("A conversation is empty.")
    cleaned, drawings = [], []
    for index, message in enumerate(chat):
        where = f"Message {index}"
        message = clean_message(message, where)
        if message["role"] == "system" and index:
            raise ValueError(f"{where} has role 'system': system comes first, before the other messages.")
        parts = message["content"]
        drawings += [part for part in parts if part["type"] == "output_image"]
        parts = [{"type": "output_image"} if part["type"] == "output_image" else part for part in parts]
        refuse_special_tokens(parts, special_tokens, where)
        last_to_continue = parts[-1:] if continued and index == len(chat) - 1 else []
        if last_to_continue and last_to_continue[0]["type"] != "text":
            raise ValueError("continue_final_message needs a final message that ends in a text part (it may be empty).")
        kept = [part for part in parts if part["type"] != "text" or part["text"] or part in last_to_continue]
        cleaned.append({**message, "content": kept})
    return cleaned, drawings


def clean_message(message: dict, where: str) -> dict:
    """A message without its None values, its content as a list of checked parts.

    Two forms circulate, and both are taken: `{"role", "content"}`, and LLaVA's `{"from", "value"}`, in which "human" is the user and "gpt"
    the assistant. A content is a text, None or a list of parts.

    Raises:
        ValueError: for an unknown role or part.
        TypeError: for a message, content, part or text of a wrong type.
    """
    if not isinstance(message, Mapping):
        raise TypeError(f"{where} is a {type(message).__name__}; a message is a dict with `role` and `content`.")
    rest = {key: value for key, value in message.items() if value is not None}
    names = ("from", "value") if "role" not in rest and "from" in rest else ("role", "content")
    role, content = (rest.pop(name, None) for name in names)
    role = ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ("user", "assistant", "system"):
        raise ValueError(f"{where} has role {role!r}; roles are user, assistant and system.")
    if content is None or isinstance(content, str):
        content = [{"type": "text", "text": content or ""}]
    if not isinstance(content, (list, tuple)):
        raise TypeError(f"{where} has a content of type {type(content).__name__}; it must be a text or a list of parts.")
    return {**rest, "role": role, "content": [clean_part(part, where) for part in content]}


def clean_part(part: dict, where: str) -> dict:
    """A content part without its None values; of a kind that the model knows, else `ValueError` (`TypeError`: of a wrong type)."""
    if not isinstance(part, Mapping):
        raise TypeError(f"{where}: a content part must be a dict, got {type(part).__name__}.")
    part = {key: value for key, value in part.items() if value is not None}
    kind = part.get("type")
    if kind == "image_url":  # OpenAI's form
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if url is not None and not isinstance(url, str):
            raise TypeError(f"{where} has an image_url of type {type(url).__name__}; it must be a text, or a dict with a text `url`.")
        part, kind = {"type": "image", **({} if url is None else {"url": url})}, "image"
    if kind not in ("text", "image", "output_image"):
        raise ValueError(f"{where} has a content part of type {kind!r}; types are text, image and output_image.")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise ValueError(f"{where} has a text part without a text.")
    if kind == "text":
        refuse_half_characters(part["text"], where)
    given = [key for key in (*IMAGE_KEYS, "codes") if key in part]
    images = [key for key in given if key != "codes"]
    if (kind == "text" and given) or (kind == "image" and "codes" in given) or len(images) > 1:
        raise ValueError(f"{where} has a part of type {kind} with {' and '.join(given)}, which does not fit.")
    return part


def refuse_half_characters(text: str, where: str) -> None:
    """Refuses text with surrogates, halves of characters that a careless cut leaves: neither tokenizers nor files take them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} has half a character, {text[error.start]!r}, at character {error.start} of its text: remove it.") from None


def refuse_special_tokens(parts: list[dict], special_tokens: set[str], where: str) -> None:
    """Refuses texts that would be tokenized into special tokens: they could forge turns or placeholders of images."""
    # Joined, since a token may be spread over neighboring parts; NUL keeps apart what an image separates.
    text = "".join(part["text"] if part["type"] == "text" else "\0" for part in parts)
    for token in special_tokens:
        if token in text:
            raise ValueError(
                f"{where} has the special token {token!r} in its text. Images are content parts of their own, of "
                "type image or output_image; to write about the token, change its spelling, for example by a space."
            )


def image_of_part(part: dict) -> Any:
    """The image that a part carries, in whatever form, or None."""
    return next((part[key] for key in IMAGE_KEYS if part.get(key) is not None), None)


def carried_drawings(drawings: list[list[dict]]) -> dict[str, list]:
    """The images or codes that `output_image` parts carry, as `{"output_images" or "output_image_codes": one list a row}`.

    Codes are taken if every part that carries anything has them, else the images; {} if no part carries anything.
    """
    carrying = [[part for part in row if len(part) > 1] for row in drawings]
    every = [part for row in carrying for part in row]
    if not every:
        return {}
    if all("codes" in part for part in every):
        return {"output_image_codes": [[part["codes"] for part in row] for row in carrying]}
    keys = [next((key for key in IMAGE_KEYS if key in part), None) for part in every]
    if None in keys:
        raise ValueError(
            "Some output_image parts carry only codes and some only images; one call takes one kind. Give the others "
            "their codes too: model.encode_images(pixels), with pixels from processor.output_image_processor."
        )
    return {"output_images": [[next(part[key] for key in IMAGE_KEYS if key in part) for part in row] for row in carrying]}


def drawings_as_text(chat: list[dict], tokens: str) -> list[dict]:
    """The checked conversation for a template that does not know images to draw: their tokens stand as text."""
    text = {"type": "text", "text": tokens}
    return [{**message, "content": [text if part["type"] == "output_image" else part for part in message["content"]]} for message in chat]


class PlainText(str):
    """The text of a turn, true also where it is empty: Transformers would put a list of no parts in place of a content that is false."""

    def __bool__(self) -> bool:
        return True


def only_texts(chat: list[dict]) -> list[dict]:
    """The checked conversation for the template of a model of texts, whose contents are plain texts."""
    return [{**message, "content": PlainText("".join(part["text"] for part in message["content"]))} for message in chat]


def refuse_images(chats: list[list[dict]]) -> None:
    """Raises a ValueError if any of the checked conversations has an image to read."""
    if any(part["type"] == "image" for chat in chats for message in chat for part in message["content"]):
        raise ValueError("This model reads no images: leave out the parts of type image. Images that it draws are of type output_image.")


def marks_assistants(chat_template: str) -> bool:
    """Whether a template says, by `{% generation %}`, what in its text is the assistant's."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", chat_template) is not None


def assistant_spans(chat: list[dict], render: Callable[..., str]) -> list[tuple[int, int]]:
    """The characters (first, last + 1) of the assistant's turns in a rendered conversation, from the prompt of each to the next turn.

    For templates that do not mark them: a turn is what the rendered text gains by it, beyond the prompt that asks for it.

    Args:
        chat: a checked conversation.
        render: gives the text of a conversation, with `add_generation_prompt` as an option.

    Raises:
        ValueError: a template that writes earlier turns otherwise once there are later ones.
    """
    whole, spans = render(chat), []
    for index, message in enumerate(chat):
        if message["role"] == "assistant":
            prompt = render(chat[:index], add_generation_prompt=True) if index else ""
            until = render(chat[: index + 1])
            if not (until.startswith(prompt) and whole.startswith(until)):
                raise ValueError(
                    "The chat template does not mark what the assistant says, by {% generation %}, and writes earlier turns otherwise once "
                    "there are later ones, so that it cannot be found either: give a template that marks it, or train on all tokens "
                    "(`assistant_only=False`)."
                )
            spans.append((len(prompt), len(until)))
    return spans
