"""Errors of libraries, in words."""

from collections.abc import Callable
from typing import Any


def in_words(call: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls what belongs to libraries, such as a template or a tokenizer; their own kinds of errors become a readable ValueError.

    Raises:
        ValueError: in place of an error of a kind that a user would not know; a plain ValueError, TypeError or OSError stays as it is.
    """
    try:
        return call(*args, **kwargs)
    except Exception as error:
        if type(error) in (ValueError, TypeError) or isinstance(error, OSError):
            raise
        kind = "The chat template" if type(error).__module__.partition(".")[0] == "jinja2" else "The processor"
        raise ValueError(f"{kind} cannot use what it was given ({type(error).__name__}): {error}") from error


__all__ = ["in_words"]
