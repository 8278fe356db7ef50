"""What configurations of the family share: checked numbers, and readable errors."""

import functools
import math
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig

# Far beyond any model that there is: numbers above are slips, which would take all memory or the whole day to build.
MOST_LAYERS = 10_000
LARGEST_SIZE = 2**24


def in_words(config_class: type) -> type:
    """Decorator of a strict configuration: whatever it refuses, or a library inside of it, is a ValueError or a TypeError."""
    build, assign = config_class.__init__, config_class.__setattr__

    @functools.wraps(build)
    def __init__(self, *args, **kwargs):
        try:
            build(self, *args, **kwargs)
        except Exception as error:  # other kinds of configurations, which are read inside, raise nearly anything at numbers that do not fit
            raise _in_words(error, config_class.__name__) from error

    @functools.wraps(assign)
    def __setattr__(self, name: str, value: Any):
        try:
            assign(self, name, value)
        except StrictDataclassError as error:
            raise _in_words(error, config_class.__name__) from error

    config_class.__init__, config_class.__setattr__ = __init__, __setattr__
    return config_class


def _in_words(error: Exception, what: str) -> ValueError | TypeError:
    if type(error) in (ValueError, TypeError):
        return error if str(error).startswith("Vargpt") else type(error)(f"{what}: {error}")  # else a part of it was wrong, and is named
    if isinstance(error, StrictDataclassError):
        kind = TypeError if isinstance(error.__cause__, TypeError) else ValueError
        return kind(f"{what}: {error.__cause__ or error}")
    return ValueError(f"These fields do not make a {what} ({type(error).__name__}: {error}).")


def _read_in(error: ValueError | TypeError, source: object) -> ValueError | TypeError:
    """The error with the name of the file that it is about, unless it has that already."""
    return error if source is None or "config.json of " in str(error) else type(error)(f"config.json of {source}: {error}")


def check_size(name: str, value: object, largest: int = LARGEST_SIZE, least: int = 1) -> None:
    """Refuses, by a ValueError (TypeError), what is no whole number from `least` to `largest`."""
    if type(value) is not int:
        raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
    if not least <= value <= largest:
        raise ValueError(f"`{name}` must be from {least} to {largest}, got {value}.")


def check_number(name: str, value: float, least: float = 0.0, most: float = math.inf, excluded: tuple[float, ...] = ()) -> None:
    """Refuses, by a ValueError, NaN, infinity and what is not from `least` to `most` or is an `excluded` end."""
    if not math.isfinite(value) or not least <= value <= most or value in excluded:
        begin, end = "(" if least in excluded else "[", ")" if most in (*excluded, math.inf) else "]"
        raise ValueError(f"`{name}` must be in {begin}{least:g}, {most:g}{end}, got {value}.")


def check_dtype(name: str, value: object) -> None:
    """Refuses, by a ValueError, what is neither None nor a floating-point type or its name."""
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if value is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"`{name}` must be a floating-point type like 'float16', 'bfloat16' or 'float32', got {value!r}.")


class VargptBaseConfig(PreTrainedConfig):
    """What our configurations share: the file that is wrong is named, and weights have a floating-point format."""

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in Transformers.

        Raises:
            ValueError, TypeError: fields that do not make this configuration, and where they were read.
        """
        if not isinstance(config_dict, dict):
            raise ValueError(f"A configuration must be an object of fields and values, got {type(config_dict).__name__}.")
        try:
            return super().from_dict(config_dict, **kwargs)
        except (ValueError, TypeError) as error:
            raise _read_in(error, kwargs.get("name_or_path")) from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in Transformers.

        Raises:
            ValueError, TypeError: as [`from_dict`].
            OSError: no config.json, or one that is not JSON.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except OSError:
            raise
        except Exception as error:  # Transformers takes it for granted that JSON is an object
            raise _read_in(_in_words(error, cls.__name__), pretrained_model_name_or_path) from error

    def __post_init__(self, **kwargs):
        check_dtype("dtype", getattr(self, "dtype", None))
        check_dtype("torch_dtype", kwargs.get("torch_dtype"))
        super().__post_init__(**kwargs)


__all__ = ["LARGEST_SIZE", "MOST_LAYERS", "VargptBaseConfig", "check_dtype", "check_number", "check_size", "in_words"]
