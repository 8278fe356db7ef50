"""What requests may hold: OpenAI's fields, those of drawing beside them, and nothing that would be left out without a word."""

import difflib
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ApiError
from .settings import ServerSettings

Body = TypeVar("Body", bound="RequestBody")
MAX_SEED = 2**63 - 1


class RequestBody(BaseModel):
    """Fields that all requests share. Those of `IGNORED` are taken, and have no effect.

    Attributes:
        image_temperature, image_top_k, image_top_p: sampling of an image's codes; a temperature of 0 takes the likeliest.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    IGNORED: ClassVar[frozenset[str]] = frozenset({"user", "safety_identifier", "quality", "style", "moderation"})

    model: str | None = None
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stream: bool | None = None
    size: str | None = None
    guidance_type: str | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    image_temperature: float | None = Field(None, ge=0)
    image_top_k: int | None = Field(None, ge=0)
    image_top_p: float | None = Field(None, ge=0, le=1)
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)


class ImageBody(RequestBody):
    """Of `POST /v1/images/generations`, and without its files of `POST /v1/images/edits`."""

    IGNORED: ClassVar[frozenset[str]] = RequestBody.IGNORED | {"input_fidelity"}

    prompt: str
    response_format: Literal["b64_json", "url"] | None = None
    background: Literal["auto", "opaque"] | None = None
    partial_images: int | None = Field(None, ge=0)


class ChatBody(RequestBody):
    """Of `POST /v1/chat/completions`."""

    IGNORED: ClassVar[frozenset[str]] = RequestBody.IGNORED | {
        *("store", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "verbosity"),
        *("parallel_tool_calls",),
    }

    messages: list[dict[str, Any]] = Field(min_length=1)
    modalities: list[Literal["text", "image"]] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_output_images: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0)
    stop: str | list[str] | None = None
    stream_options: dict[str, Any] | None = None
    # What the model cannot do, and clients send with a value that asks for nothing.
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None


_REFUSED = {
    "tools": "This model calls no tools",
    "tool_choice": "This model calls no tools",
    "functions": "This model calls no functions",
    "function_call": "This model calls no functions",
    "response_format": "Answers are plain text",
    "logprobs": "Log probabilities are not given out",
    "top_logprobs": "Log probabilities are not given out",
    "logit_bias": "Biases of single tokens are not taken",
    "presence_penalty": "There is `repetition_penalty` instead",
    "frequency_penalty": "There is `repetition_penalty` instead",
    "audio": "This model neither hears nor speaks",
    "prediction": "Predicted outputs are not taken",
    "web_search_options": "This model searches nothing",
}
_NEUTRAL = {"tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "response_format": ({"type": "text"},)}


def parse(kind: type[Body], data: Any, strict: bool = True) -> Body:
    """A request's body, checked.

    Args:
        kind: its class.
        data: the fields.
        strict: whether types must be right, as in JSON; forms hold texts alone.

    Raises:
        ApiError: 400 for no object and for what the model cannot do, 422 for a field that is unknown or has a value that it may not have.
    """
    if not isinstance(data, dict):
        raise ApiError(400, f"The body must be a JSON object, not a {type(data).__name__}.")
    try:
        body = kind.model_validate({name: value for name, value in data.items() if name not in kind.IGNORED}, strict=strict)
    except ValidationError as error:
        raise _unfit(kind, error) from error
    for name, why in _REFUSED.items() if isinstance(body, ChatBody) else ():
        value = getattr(body, name)
        if value not in (None, False, 0, *_NEUTRAL.get(name, ())) and value != [] and value != {}:
            raise ApiError(400, f"{why}: leave out `{name}`.", "unsupported_parameter", name)
    return body


def _unfit(kind: type[RequestBody], error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, kind.model_fields, n=1)
        return ApiError(
            422, f"There is no field `{where[:80]}`" + (f": do you mean `{near[0]}`?" if near else "."), "unknown_parameter", where[:80]
        )
    if first["type"] == "missing":
        return ApiError(400, f"The field `{where}` is missing.", "missing_required_parameter", where)
    given = repr(first["input"])
    given = given if len(given) <= 80 else f"{given[:77]}..."
    return ApiError(422, f"`{where[:80]}` is {given}: {first['msg'].lower()}.", "invalid_value", where[:80])


def check_limits(body: RequestBody, settings: ServerSettings) -> None:
    """Raises an ApiError for a request that asks for more than the server's limits."""
    if (body.n or 1) > settings.max_drawings:
        raise ApiError(400, f"`n` is {body.n}; this server gives up to {settings.max_drawings} at once.", "invalid_value", "n")
    if body.seed is not None and body.seed + (body.n or 1) - 1 > MAX_SEED:
        raise ApiError(400, f"`seed` is {body.seed}, too large for {body.n} seeds from it on.", "invalid_value", "seed")
    if isinstance(body, ChatBody):
        for name in ("max_tokens", "max_completion_tokens"):
            if (getattr(body, name) or 0) > settings.max_tokens:
                message = f"`{name}` is {getattr(body, name)}; this server gives up to {settings.max_tokens} tokens."
                raise ApiError(400, message, "invalid_value", name)


__all__ = ["ChatBody", "ImageBody", "check_limits", "parse"]
