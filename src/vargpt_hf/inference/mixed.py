"""Weights as they are stored, computed with in float32: for devices without units for the stored format, where float32 weights have no room.

A CPU without units for bfloat16 multiplies it tens of times more slowly than float32. Linear layers and the table of text tokens, which hold
nearly all weights, keep theirs in the stored format, mapped from the file, and widen what they use as they use it; all else is float32.
Results are those of the model loaded in float32, up to the order in which sums are rounded, and memory is that of the stored weights.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ..modeling.modeling_vargpt import VargptForConditionalGeneration

MIXED = "mixed"
NARROW = (torch.bfloat16, torch.float16)
_BLOCK = 2**21  # numbers that are widened at once: 8 MB, about what caches hold


class StoredLinear(nn.Linear):
    """A linear layer (…, D) → (…, E) whose weight keeps its format; the computation is in that of the input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = max(_BLOCK // self.in_features, 1)
        # One place for all blocks: asking for a fresh one each time costs up to as much as the products of a few rows.
        wide = None if torch.is_grad_enabled() else input.new_empty(min(rows, self.out_features), self.in_features)
        output = input.new_empty(*input.shape[:-1], self.out_features)
        for first in range(0, self.out_features, rows):
            block = self.weight[first : first + rows]
            widened = block.to(input.dtype) if wide is None else wide[: len(block)].copy_(block)
            output[..., first : first + rows] = F.linear(input, widened)
        return output if self.bias is None else output + self.bias


class StoredEmbedding(nn.Embedding):
    """A table of token embeddings that keeps its format; what is looked up is float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).float()


@torch.no_grad()
def compute_in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Makes a model whose weights are bfloat16 or float16 compute in float32, in place; returns it.

    Weights of plain linear layers and of a plain table of text tokens stay as they are, unless another kind of module has them, too. Quantized
    ones are left to their library. For inference.
    """
    found = {name: module for name, module in model.named_modules() if type(module) is nn.Linear or module is model.get_input_embeddings()}
    plain = {name: module for name, module in found.items() if type(module) in (nn.Linear, nn.Embedding) and _is_narrow(module.weight)}
    others = {id(p) for module in model.modules() if module not in plain.values() for p in module.parameters(recurse=False)}
    kept = {name: module for name, module in plain.items() if id(module.weight) not in others}
    weights = {id(module.weight) for module in kept.values()}
    for parameter in model.parameters():
        if _is_narrow(parameter) and id(parameter) not in weights:
            parameter.data = parameter.data.float()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype in NARROW:
                setattr(module, name, buffer.float())
    for name, module in kept.items():
        model.set_submodule(name, _stored(module).train(module.training))
    return model


def _is_narrow(weight: nn.Parameter) -> bool:
    """Whether its numbers lie there one by one, in a format to be widened: tensors of quantization libraries are of classes of their own."""
    return type(weight) is nn.Parameter and weight.dtype in NARROW


def _stored(module: nn.Linear | nn.Embedding) -> StoredLinear | StoredEmbedding:
    """The same layer, with the same weight, that widens what it uses."""
    if isinstance(module, nn.Embedding):
        stored = StoredEmbedding(module.num_embeddings, module.embedding_dim, module.padding_idx, device="meta")
    else:
        stored = StoredLinear(module.in_features, module.out_features, bias=False, device="meta")
        stored.bias = module.bias
    stored.weight = module.weight
    return stored


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


__all__ = ["MIXED", "StoredEmbedding", "StoredLinear", "compute_in_float32", "load_to_infer"]
