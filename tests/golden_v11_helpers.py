"""What the released VARGPT v1.1 computed with random weights (`tests/golden_v11/`), and how closely we must agree with it."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from golden_helpers import LEAST_RELATIVE_NOISE, NOISE_FACTOR
from safetensors.torch import load_file

GOLDEN_V11 = Path(__file__).parent / "golden_v11"


@cache
def golden_v11_json(name: str) -> dict:
    """One of the JSON files: config, meta, noise_floor or keys."""
    return json.loads((GOLDEN_V11 / f"{name}.json").read_text(encoding="utf-8"))


@cache
def _file(group: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN_V11 / f"{group}.safetensors")


def golden_v11(name: str) -> torch.Tensor:
    """One tensor, named "group/tensor"."""
    group, tensor = name.split("/", 1)
    return _file(group)[tensor]


def assert_close_to_v11(name: str, actual: torch.Tensor, where: torch.Tensor | None = None) -> None:
    """Asserts that `actual` is the golden tensor "group/tensor" up to rounding; integers must be equal.

    Args:
        where: mask of the leading dimensions; only what it keeps is compared.
    """
    expected, actual = golden_v11(name), actual.detach()
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, golden {tuple(expected.shape)}"
    if where is not None:
        actual, expected = actual[where.bool()], expected[where.bool()]
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), f"{name}: {int((actual != expected).sum())} of {expected.numel()} differ"
        return
    noise = golden_v11_json("noise_floor")[name]
    allowed = NOISE_FACTOR * max(noise["max_abs_diff"], LEAST_RELATIVE_NOISE * noise["max_abs"])
    difference = (actual.double() - expected.double()).abs().max().item()
    assert difference <= allowed, f"{name}: differs by {difference:.2e}, allowed {allowed:.2e}"


@cache
def released_v11_weights() -> dict[str, torch.Tensor]:
    """The state dict of the released system with the golden weights, float32 (its integer buffer as it is)."""
    dtypes = {name: getattr(torch, key["dtype"]) for name, key in golden_v11_json("keys").items()}
    with np.load(GOLDEN_V11 / "state_dict_f16.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]).to(dtypes[name]) for name in arrays.files}


def released_v11_part(prefix: str) -> dict[str, torch.Tensor]:
    """Its tensors below a prefix, which is removed from their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in released_v11_weights().items() if name.startswith(prefix)}
