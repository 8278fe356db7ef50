"""Settings of `generate`: what there is for images, and checks of everything that a caller may set, text settings included."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from .configuration_vargpt import VargptConfig
from .image_sampling_vargpt import GUIDANCE_TYPES

GENERATION_MODES = ("auto", "text", "image", "text_image")
DRAWING_MODES = ("image", "text_image")  # in which each row ends with its one image
PLAN_TOKENS = 256  # that a plan before an image may take, where nobody says how many
IMAGE_GENERATION_DEFAULTS = {
    "generation_mode": "auto",
    "max_output_images": 4,
    "output_image_guidance_type": "none",
    "output_image_guidance_scale": 1.5,
    "output_image_guidance_ramp": True,
    "output_image_temperature": 1.0,
    "output_image_top_k": 900,
    "output_image_top_p": 0.96,
    "output_image_unconditional_ids": None,
}
MAX_GUIDANCE_SCALE = 100.0
# Below it, scores over the temperature leave the range of float32, or all but say what greedy decoding says.
MIN_TEMPERATURE = 1e-5
MAX_TEMPERATURE = 1e6  # all is equally likely long before; beyond float32 it makes NaN of what is ruled out

# Whole numbers with their smallest value, real numbers with their range, switches, and token ids: one, or several.
_INTEGERS: dict[str, int] = {
    **dict.fromkeys(("max_output_images", "output_image_top_k", "top_k", "min_length", "min_new_tokens", "no_repeat_ngram_size"), 0),
    **dict.fromkeys(("max_new_tokens", "max_length", "num_beams", "num_return_sequences", "prompt_lookup_num_tokens"), 1),
}
_NUMBERS = {
    "output_image_guidance_scale": (0.0, MAX_GUIDANCE_SCALE),
    **dict.fromkeys(("output_image_top_p", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), (0.0, 1.0)),
    **dict.fromkeys(("output_image_temperature", "temperature"), (0.0, MAX_TEMPERATURE)),
    **dict.fromkeys(("repetition_penalty", "max_time"), (0.0, math.inf)),
    "length_penalty": (-math.inf, math.inf),
}
_SWITCHES = ("output_image_guidance_ramp", "do_sample", "use_cache", "return_dict_in_generate", "output_scores", "output_logits")
_ONE_ID = ("pad_token_id", "bos_token_id", "forced_bos_token_id")
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "output_image_unconditional_ids")
_IDS = ("eos_token_id", "forced_eos_token_id", *_LISTS)


class VargptGenerationConfig(GenerationConfig):
    """Settings of `generate`: those of Transformers for text, and these for images. None stands for the default.

    Args:
        generation_mode (`str`): "auto" (the model decides; default), "text" (never draws), "image" (draws one image at
            once and stops), "text_image" (writes a plan, then draws one image and stops).
        max_output_images (`int`): images a row may draw (4).
        output_image_guidance_type (`str`): "none" (default, unless a call is given a strength or a negative prompt); "prompt",
            classifier-free guidance against an unconditional prompt that rides in the same batch; "noise", the released system's,
            against decoder inputs made of noise; "scale", VARGPT v1.1's, against each scale alone.
        output_image_guidance_scale (`float`): strength g of guidance (1.5).
        output_image_guidance_ramp (`bool`): let the strength rise from 0 at the first scale to g at the last (True).
        output_image_temperature (`float`), output_image_top_k (`int`), output_image_top_p (`float`): sampling of codes where `do_sample=True`
            (1.0, 900, 0.96); 0 switches top-k or top-p off, a temperature of 1 changes nothing.
        output_image_unconditional_ids (`list[int]`): unconditional (or negative) prompt of "prompt" guidance; by default the
            beginning-of-sequence token alone.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for name in IMAGE_GENERATION_DEFAULTS:
            setattr(self, name, kwargs.get(name))

    def to_diff_dict(self) -> dict:
        """What is saved: settings that are not left to their defaults."""
        return {name: value for name, value in super().to_diff_dict().items() if name not in IMAGE_GENERATION_DEFAULTS or value is not None}


def guided(given: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Settings of one call, in which a negative prompt means guidance by prompt, and so does a strength alone where no type is saved.

    Args:
        given: to the call; its type of guidance, if any, stays.
        saved: what holds where nothing is given.
    """
    has_own = saved.get("output_image_guidance_type") not in (None, "none")
    asked = given.get("output_image_unconditional_ids") is not None
    asked |= given.get("output_image_guidance_scale") is not None and not has_own
    return {**given, "output_image_guidance_type": "prompt"} if asked and given.get("output_image_guidance_type") is None else given


def plain_ids(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that are token ids, tensors and tuples as lists, which all that reads them takes."""
    plain = {}
    for name in [name for name in (*_ONE_ID, *_IDS) if settings.get(name) is not None]:
        value = settings[name]
        plain[name] = value.tolist() if isinstance(value, torch.Tensor) else list(value) if isinstance(value, tuple) else value
    return plain


def check_settings(settings: dict[str, Any], vocab_size: int) -> None:
    """Raises for settings that no decoding could keep; settings that are None or unknown here are left alone.

    Raises:
        TypeError: a setting of the wrong Python type.
        ValueError: a value out of its range, NaN or infinite, or a token id outside of the vocabulary of `vocab_size`.
    """
    settings = {name: value for name, value in {**settings, **plain_ids(settings)}.items() if value is not None}
    for names, check in ((_INTEGERS, _check_integer), (_NUMBERS, _check_number), (_SWITCHES, _check_switch)):
        for name in [name for name in names if name in settings]:
            check(name, settings[name])
    for name, choices in (("generation_mode", GENERATION_MODES), ("output_image_guidance_type", tuple(GUIDANCE_TYPES))):
        value = settings.get(name, choices[0])
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")
    for name in ("output_image_temperature", "temperature") if settings.get("do_sample") else ():
        value = settings.get(name, 1.0)
        if value < MIN_TEMPERATURE:
            raise ValueError(
                f"`{name}` must be positive, at least {MIN_TEMPERATURE}, got {value}; `do_sample=False` takes the likeliest, without it."
            )
    for name in (*_ONE_ID, *_IDS):
        _check_ids(name, settings.get(name), vocab_size, several=name in _IDS)


def _check_type(name: str, value: Any, fits: Callable[[Any], bool], expected: str) -> None:
    if not fits(value):
        raise TypeError(f"`{name}` must be {expected}, got {value!r} of type {type(value).__name__}.")


def is_integer(value: Any) -> bool:
    """Whether this is a whole number; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_integer(name: str, value: Any) -> None:
    _check_type(name, value, is_integer, "a whole number")
    if value < _INTEGERS[name]:
        what = "negative" if _INTEGERS[name] == 0 else f"less than {_INTEGERS[name]}"
        raise ValueError(f"`{name}` must not be {what}, got {value}.")
    if value >= 2**31:
        raise ValueError(f"`{name}` must be less than 2^31, got {value}.")


def _check_number(name: str, value: Any) -> None:
    _check_type(name, value, lambda number: isinstance(number, numbers.Real) and not isinstance(number, bool), "a number")
    low, high = _NUMBERS[name]
    if not math.isfinite(value) or not low <= value <= high:
        limits = f"in [{low:g}, {high:g}]" if math.isfinite(high) else "finite" if low else "finite and not negative"
        raise ValueError(f"`{name}` must be {limits}, got {value}.")


def _check_switch(name: str, value: Any) -> None:
    _check_type(name, value, lambda switch: isinstance(switch, bool), "True or False")


def _check_ids(name: str, value: Any, vocab_size: int, several: bool) -> None:
    """Token ids: one, or (`several`) one or a list, of which only `suppress_tokens` and such may be empty; these are never one alone."""
    if value is None:
        return
    is_list = isinstance(value, (list, tuple))
    for token in value if several and is_list else [value]:
        _check_type(name, token, is_integer, "a token id" + (" or a list of them" if several else ""))
        if not 0 <= token < vocab_size:
            raise ValueError(f"`{name}` has the token id {token}, but the vocabulary has the ids 0 to {vocab_size - 1}.")
    if name in _LISTS and not (is_list and (value or name != "output_image_unconditional_ids")):
        least = "at least one token id" if name == "output_image_unconditional_ids" else "token ids"
        raise ValueError(f"`{name}` must be a list of {least}, got {value!r}.")


def check_run_arguments(
    config: VargptConfig, generator: Any, output_image_streamer: Any, output_image_noise: Any, schedule_ids: torch.LongTensor
) -> None:
    """Raises a TypeError or ValueError for arguments of one call of `generate` that cannot be meant.

    Args:
        schedule_ids: scale schedule of each row's images, (B,), on the prompt's device.
    """
    device = schedule_ids.device
    for each in generator if isinstance(generator, (list, tuple)) else [generator]:
        if generator is not None and not isinstance(each, torch.Generator):
            raise TypeError(f"`generator` must be a torch.Generator, or a list with one for each row, got {type(each).__name__}.")
        if each is not None and each.device.type != device.type:
            raise ValueError(
                f"`generator` is on {each.device}, but the prompt is on {device}: make it by torch.Generator({str(device)!r}).manual_seed(…)."
            )
    for name in ("put", "end"):
        if output_image_streamer is not None and not callable(getattr(output_image_streamer, name, None)):
            raise TypeError(
                f"`output_image_streamer` must be a VargptImageStreamer, with a method `{name}`, got {type(output_image_streamer).__name__}."
            )
    if output_image_noise is None:
        return
    chosen = sorted(set(schedule_ids.tolist()))
    if len(chosen) > 1:
        raise ValueError(
            f"`output_image_noise` is for images of one schedule, but the rows draw those of {chosen}: draw them in calls of their own."
        )
    schedule = config.schedules[chosen[0] if chosen else 0]
    if not isinstance(output_image_noise, (list, tuple)) or not all(isinstance(noise, torch.Tensor) for noise in output_image_noise):
        raise TypeError(f"`output_image_noise` must be a list of tensors, one for each of the {len(schedule)} scales.")
    shapes = [tuple(noise.shape[1:]) for noise in output_image_noise]
    expected = [(length, config.text_config.hidden_size) for length in schedule.areas]
    if shapes != expected:
        raise ValueError(f"`output_image_noise` has tensors of shape (images, …) with {shapes} behind; expected {expected}.")
    for index, noise in enumerate(output_image_noise):
        if not noise.isfinite().all():
            raise ValueError(f"`output_image_noise` of scale {index} has values that are NaN or infinite.")


def check_can_draw(mode: GenerationMode, config: GenerationConfig, mode_kwargs: dict) -> None:
    """Raises a ValueError where text decoding is of a kind that images cannot be drawn in."""
    advice = 'Set it otherwise, or `generation_mode="text"` to decode text only.'
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(
            f"Images cannot be drawn under {mode.value}: it reorders or rolls back rows, which an image's scale passes cannot follow. {advice}"
        )
    if config.use_cache is False:
        raise ValueError(f"Images cannot be drawn with `use_cache=False`: scale passes stand on the cache. {advice}")
    if mode_kwargs.get("synced_gpus"):
        raise ValueError(f"Images cannot be drawn with `synced_gpus`: ranks would need the same number of scale passes. {advice}")


def check_room(config: VargptConfig, num_tokens: int, image_tokens: int = 0) -> None:
    """Raises a ValueError for a prompt beyond the positions that the language model knows.

    Args:
        num_tokens: of the prompt, placeholders of its images included.
        image_tokens: that have to follow it, where an image is asked for.
    """
    positions = max_positions(config)
    if num_tokens < 1:
        raise ValueError("The prompt is empty: give it at least one token.")
    if num_tokens + image_tokens > positions:
        beside = "beside an image " if image_tokens else ""
        raise ValueError(
            f"the prompt has {num_tokens} tokens; {beside}the model has room for {int(positions) - image_tokens}: make it shorter."
        )


def max_positions(config: VargptConfig) -> float:
    """Positions that the language model knows; infinite for one that says nothing of them."""
    return getattr(config.text_config, "max_position_embeddings", None) or math.inf


def image_tokens(config: VargptConfig, schedule_ids: list[int], start_is_there: bool = False) -> int:
    """Positions that the longest of these images takes: its own, and image-start unless the prompt ends in it; no model is fed image-end."""
    return max(config.schedules[index].num_positions for index in schedule_ids) + (not start_is_there)


def user_turn(text: str) -> list[dict[str, Any]]:
    """The chat of one user's turn that a plain text stands for.

    Raises:
        TypeError: no text.
        ValueError: an empty text, or one with halves of surrogate pairs, which are no characters.
    """
    if not isinstance(text, str):
        raise TypeError(f"the prompt is not a text, but {type(text).__name__}")
    if not text.strip():
        raise ValueError("the prompt is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt holds half a character ({error.reason}) at character {error.start}") from error
    return [{"role": "user", "content": text.strip()}]


__all__ = [
    "DRAWING_MODES",
    "IMAGE_GENERATION_DEFAULTS",
    "PLAN_TOKENS",
    "VargptGenerationConfig",
    "check_can_draw",
    "check_room",
    "check_run_arguments",
    "check_settings",
    "guided",
    "plain_ids",
    "user_turn",
]
