"""Layers that torch compiles one by one, as training repeats them."""

import os
import shutil

from torch import nn

from ..operations import layers_of

_CPP_COMPILERS = ("g++", "clang++")


def compile_layers(model: nn.Module, backend: str = "inductor") -> int:
    """Compiles every layer of language model, vision tower and visual decoder in place; equal ones share their code.

    The model stays what it is: its class, the names of its weights and its hooks. What surrounds the layers, where shapes depend on what a
    batch holds, runs as ever. Not so by accelerate's regional compilation, which copies the model and thereby passes by the copy's layers
    where a trainer of TRL has replaced `forward`.

    Args:
        model: any model of Transformers, with adapters or without, before it is distributed.
        backend: of `torch.compile`.

    Returns:
        How many layers there are.

    Raises:
        ValueError: no layers, or no C++ compiler on a machine whose CPU trains.
    """
    layers = layers_of(model)
    if not layers:
        raise ValueError(f"`compile_layers` found no layers in a {type(model).__name__}: leave it out.")
    if backend == "inductor" and next(model.parameters()).device.type == "cpu" and not has_cpp_compiler():
        raise ValueError(
            f"`compile_layers` needs a C++ compiler ({', '.join(_CPP_COMPILERS)}, or one that CXX names): install it, or leave it out."
        )
    for layer in layers:
        layer.compile(backend=backend)
    return len(layers)


def has_cpp_compiler() -> bool:
    """Whether this machine has what torch compiles for CPUs with."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), *_CPP_COMPILERS) if name)


__all__ = ["compile_layers", "has_cpp_compiler"]
