"""Tensors of released files under our names.

A table's row is (released, ours): `{}` stands for any part without a dot, carried over in order, `{rest}` for anything. None in place of our
name marks a tensor that nothing reads. The first row that fits counts; a released name that fits none is unexpected. The tables stand in
`formats/`, a file for each released format.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import torch

from .checkpoint import SourceTensor

Adapt = Callable[[str, torch.Tensor], Iterable[tuple[str, torch.Tensor]]]
Names = list[tuple[str, str | None]]

_WILDCARDS = re.compile(r"\\\{(rest)?\\\}")


def rename(name: str, table: Names) -> str | None:
    """Our name of a released tensor, or None where nothing reads it.

    Raises:
        KeyError: a name that no row of the table fits.
    """
    for released, ours in table:
        if (parts := _parts(name, released)) is not None:
            return ours and _filled(ours, parts)
    raise KeyError(name)


def released_names(name: str, table: Names) -> list[str]:
    """All released names of a tensor of ours, in the order of the table."""
    pairs = [(released, _parts(name, ours)) for released, ours in table if ours]
    names = [_filled(released, parts) for released, parts in pairs if parts is not None]
    return [found for found in names if rename(found, table) == name]


def _parts(name: str, form: str) -> tuple[str, ...] | None:
    """What stands in a name at the wildcards of a row's form, None where it does not fit."""
    match = _pattern(form).fullmatch(name)
    return None if match is None else match.groups()


@cache
def _pattern(form: str) -> re.Pattern[str]:
    return re.compile(_WILDCARDS.sub(lambda wildcard: "(.+)" if wildcard[1] else r"([^.]+)", re.escape(form)))


def _filled(form: str, parts: tuple[str, ...]) -> str:
    """A row's form with these in place of its wildcards."""
    return form.replace("{rest}", "{}").format(*parts)


class Part(NamedTuple):
    """Tensors that were released together, and how they become ours.

    Args:
        tensors: by their released names.
        names: table from these to ours.
        prefix: put before the names that the table gives.
        adapt: our tensors of a released one under its new name, by default the tensor as it is.
        stored_as: the name that the table has for a tensor of ours where `adapt` splits one; by default the same.
        keeps_dtype: whether the tensors stay in their own number formats.
    """

    tensors: dict[str, SourceTensor]
    names: Names
    prefix: str = ""
    adapt: Adapt = lambda name, tensor: [(name, tensor)]
    stored_as: Callable[[str], str] = lambda name: name
    keeps_dtype: bool = False

    def ours(self, released: str) -> str | None:
        """Our name of a released tensor, None where nothing reads it; KeyError where the table has none."""
        name = rename(released, self.names)
        return name and self.prefix + name

    def released(self, name: str) -> str | None:
        """The released name of a tensor of ours, None where it is not of this part.

        Of several forms of a name the one that shares most with the names of the tensors that are there: what the checkpoint would have.
        """
        name = self.stored_as(name)
        if not name.startswith(self.prefix):
            return None
        known = {tuple(there.split(".")[:depth]) for there in self.tensors for depth in range(1, there.count(".") + 1)}

        def shared(form: str) -> int:
            parts = form.split(".")
            return max((depth for depth in range(1, len(parts)) if tuple(parts[:depth]) in known), default=0)

        forms = released_names(name.removeprefix(self.prefix), self.names)
        return max(reversed(forms), key=shared, default=None)


__all__ = ["Adapt", "Names", "Part", "released_names", "rename"]
