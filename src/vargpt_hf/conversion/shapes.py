"""Sizes that released files do not say, inferred from the shapes of their tensors."""

import re

import torch


class TensorShapes:
    """Shapes of the tensors below a prefix.

    Args:
        tensors: tensors by name.
        prefix: what is removed from the names; tensors without it are left out.
        where: what holds the tensors, for errors.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], prefix: str = "", where: str = "The checkpoint"):
        self.prefix, self.where = prefix, where
        self.shapes = {name.removeprefix(prefix): tensor.shape for name, tensor in tensors.items() if name.startswith(prefix)}

    def of(self, name: str, axes: int) -> torch.Size:
        """The shape of a tensor with so many axes; ValueError where it is absent, has others or is empty."""
        if name not in self.shapes:
            raise ValueError(f"{self.where} lacks the tensor {self.prefix}{name}, off whose shape a size is read.")
        shape = self.shapes[name]
        if len(shape) != axes or not all(shape):
            raise ValueError(f"{self.where} has {self.prefix}{name} of shape {tuple(shape)}; {axes} axes are needed, none of them empty.")
        return shape

    def count(self, prefix: str) -> int:
        """How many numbered parts there are below `prefix`: the highest number and one."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        numbers = [int(match[1]) for name in self.shapes if (match := pattern.match(name))]
        if not numbers:
            raise ValueError(f"{self.where} lacks all tensors {self.prefix}{prefix}.*, by which parts are counted.")
        return max(numbers) + 1


__all__ = ["TensorShapes"]
