"""Weights as they are stored, computed with in float32: for devices without units for the stored format, where float32 weights have no room.

A CPU without units for bfloat16 multiplies it tens of times more slowly than float32. Linear layers, which hold nearly all weights, keep theirs
in the stored format, mapped from the file, and widen them block by block as they multiply; all else is float32. Results are those of the
model loaded in float32, up to the order in which sums are rounded, and memory is that of the stored weights.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..modeling.modeling_vargpt import VargptForConditionalGeneration

MIXED = "mixed"
NARROW = (torch.bfloat16, torch.float16)
_BLOCK = 2**22  # numbers that are widened at once: 16 MB, about what caches hold


class StoredLinear(nn.Linear):
    """A linear layer (…, D) → (…, E) whose weight keeps its format; the computation is in that of the input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = max(_BLOCK // self.in_features, 1)
        parts = [F.linear(input, block.to(input.dtype)) for block in self.weight.split(rows)]
        output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return output if self.bias is None else output + self.bias


@torch.no_grad()
def compute_in_float32(model: nn.Module) -> nn.Module:
    """Makes a model whose weights are bfloat16 or float16 compute in float32, in place; returns it.

    Weights of plain linear layers stay as they are, unless another kind of module has them, too, such as a tied embedding. For inference.
    """
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear and module.weight.dtype in NARROW}
    others = {id(p) for module in model.modules() if type(module) is not nn.Linear for p in module.parameters(recurse=False)}
    kept = {name: module for name, module in linears.items() if id(module.weight) not in others}
    weights = {id(module.weight) for module in kept.values()}
    for parameter in model.parameters():
        if parameter.dtype in NARROW and id(parameter) not in weights:
            parameter.data = parameter.data.float()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype in NARROW:
                setattr(module, name, buffer.float())
    for name, module in kept.items():
        stored = StoredLinear(module.in_features, module.out_features, bias=False, device="meta")
        stored.weight, stored.bias = module.weight, module.bias
        model.set_submodule(name, stored.train(module.training))
    return model


def load_to_infer(model: str | Path, dtype: str = "auto") -> VargptForConditionalGeneration:
    """A model to draw and ask with.

    Args:
        model: folder or Hub id.
        dtype: "auto", as stored; "mixed", as stored and computed in float32; or a format by its name.

    Raises:
        ValueError, OSError: as `from_pretrained`.
    """
    loaded = VargptForConditionalGeneration.from_pretrained(model, dtype="auto" if dtype == MIXED else dtype)
    return compute_in_float32(loaded) if dtype == MIXED else loaded


__all__ = ["MIXED", "StoredLinear", "compute_in_float32", "load_to_infer"]
