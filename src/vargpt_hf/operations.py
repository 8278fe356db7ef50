"""Floating-point operations of a model's parts, counted from its layers without running it: the one account, of training and of drawing.

Counted are matrix products, convolutions and attention over all pairs of a call's queries and keys, two operations for each multiply-add, as
torch's `FlopCounterMode` counts them; what else there is (norms, activations, interpolation) takes memory's time rather than arithmetic's,
and counts as nothing. Models may be on any device, also the meta device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_layers import GradientCheckpointingLayer

from .modeling.modeling_vargpt import VargptForConditionalGeneration, VargptModel

ATTENTION = 4  # operations of one pair of query and key and one channel: a product each for scores and for values, two operations each
CONDITIONS = 2  # the decoder's modulations are computed once for each of these, not for each position


class Matrix(NamedTuple):
    """A linear layer or convolution. `size` is its numbers, also where they are stored quantized."""

    size: int
    inputs: int
    outputs: int
    is_trained: bool
    is_adapter: bool


class Unit(NamedTuple):
    """A layer that checkpointing computes again, or a module outside of layers, and the matrices inside."""

    is_layer: bool
    is_trained: bool
    matrices: list[Matrix]


@dataclass
class Part:
    """Modules that see the same positions, in the order in which they run.

    Args:
        positions: tokens, patches or codes of a call.
        context: positions that each attends to.
        width: of the attention's queries over all heads.
        without: modules inside that do not see these positions.
    """

    modules: list[nn.Module]
    positions: float
    context: int = 0
    width: int = 0
    without: tuple[nn.Module, ...] = ()

    def units(self) -> list[Unit]:
        """What runs, in order."""
        skipped = {id(inner) for outer in self.without for inner in outer.modules()}
        units, inside = [], set()
        for module in (module for top in self.modules for module in top.modules()):
            is_layer = isinstance(module, GradientCheckpointingLayer)
            if id(module) not in inside and (is_layer or next(module.parameters(recurse=False), None) is not None):
                inside |= {id(inner) for inner in module.modules()}
                units.append(Unit(is_layer, is_trained(module), matrices_in(module, skipped)))
        return units

    def attention(self, unit: Unit) -> float:
        """Operations of a unit's attention: queries by keys, weights by values."""
        return ATTENTION * self.positions * self.context * self.width * unit.is_layer

    def product(self, matrix: Matrix) -> float:
        """Operations of the product with one matrix."""
        return 2 * self.positions * matrix.size

    @property
    def flops(self) -> float:
        """Operations of one call."""
        return sum(self.attention(unit) + sum(map(self.product, unit.matrices)) for unit in self.units())

    @property
    def numbers(self) -> int:
        """Weights that one call reads."""
        return sum(matrix.size for unit in self.units() for matrix in unit.matrices)


class ModelParts:
    """Which modules of a model see which positions, by the part of the work."""

    def __init__(self, model: VargptForConditionalGeneration):
        self.model, self.inner, self.config = model, model.model, model.config
        text = self.config.text_config
        self.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads

    def language_model(self, positions: float, context: int) -> Part:
        """Its layers, whose positions attend to `context` others; less the head."""
        return Part([self.inner.backbone.decoder], positions, context, self.config.text_config.num_attention_heads * self.head_dim)

    def lm_head(self, positions: float) -> Part:
        """The language model's head."""
        return Part([self.model.lm_head], positions)

    def embedding(self, positions: float) -> Part:
        """Of what coarser scales have drawn, for the language model."""
        return Part(self.inner.visual_decoder.embedding_modules, positions)

    def projector_to_llm(self, positions: float) -> Part:
        """From the visual decoder's width to the language model's."""
        return Part([self.inner.projector_to_llm], positions)

    def projector_to_decoder(self, positions: float) -> Part:
        """From the language model's width to the visual decoder's."""
        return Part([self.inner.projector_to_decoder], positions)

    def conditions(self, number: float = CONDITIONS) -> Part:
        """What the visual decoder computes once for each condition."""
        return Part(self.inner.visual_decoder.condition_modules, number)

    def decoder_context(self, positions: float) -> Part:
        """What the visual decoder computes once for each token of its context."""
        return Part(self.inner.visual_decoder.context_modules, positions)

    def visual_decoder(self, positions: float, context: int) -> Part:
        """All of it that sees its positions, which attend to `context` others."""
        decoder = self.inner.visual_decoder
        apart = (*decoder.embedding_modules, *decoder.condition_modules, *decoder.context_modules)
        modules = [child for child in decoder.children() if matrices_in(child, {id(inner) for outer in apart for inner in outer.modules()})]
        return Part(modules, positions, context, self.config.visual_decoder_config.hidden_size, without=apart)

    def reading_modules(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """What sees patches of images that are read, and what sees the tokens that come of them."""
        towers, projectors = self.inner.backbone.tower_names, self.inner.backbone.projector_names
        return [self.inner.vlm.get_submodule(name) for name in towers], [self.inner.vlm.get_submodule(name) for name in projectors]

    def reading(self, images: float, tokens_of_image: float) -> list[Part]:
        """Of images that are read: the towers, then what follows them; nothing where there are none."""
        towers, connectors = self.reading_modules()
        if not towers:
            return []
        vision = self.config.vision_config
        if isinstance(side := getattr(vision, "image_size", None), int) and isinstance(vision.patch_size, int):
            patches = (side // vision.patch_size) ** 2 + 1
        else:
            patches = tokens_of_image * getattr(vision, "spatial_merge_size", 1) ** 2
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        return [Part(towers, images * patches, patches, width, without=tuple(connectors)), Part(connectors, images * tokens_of_image)]


def encoder_flops(model: VargptForConditionalGeneration) -> int:
    """Operations of the image tokenizer on one image, pixels to latents; the model is on the meta device."""
    tokenizer = model.model.image_tokenizer
    return _counted(tokenizer.encode_latents, tokenizer.config.in_channels, *tokenizer.config.image_size())


def decoder_flops(model: VargptForConditionalGeneration) -> int:
    """Operations of the image tokenizer on one image, latents to pixels; the model is on the meta device."""
    tokenizer = model.model.image_tokenizer
    return _counted(tokenizer.decode_latents, tokenizer.config.latent_channels, *tokenizer.default_schedule.final_grid)


def _counted(call: Callable[[torch.Tensor], torch.Tensor], *shape: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops()


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of language model, vision tower and visual decoder: what checkpointing computes again."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def projectors_of(model: nn.Module) -> list[nn.Module]:
    """The projectors between vision tower, language model and visual decoder of the VARGPT inside a model; none of another model."""
    found = []
    for inner in (module for module in model.modules() if isinstance(module, VargptModel)):
        found += [inner.projector_to_llm, inner.projector_to_decoder, *map(inner.vlm.get_submodule, inner.backbone.projector_names)]
    return found


def is_trained(module: nn.Module) -> bool:
    """Whether anything inside requires gradients."""
    return any(p.requires_grad for p in module.parameters())


def matrices_in(module: nn.Module, skipped: set[int] | frozenset[int] = frozenset()) -> list[Matrix]:
    """The matrices inside a module but for those of the modules with these ids."""
    found = []
    for name, leaf in module.named_modules():
        if id(leaf) in skipped or "original_module" in name.split("."):  # in place of which PEFT trains a copy
            continue
        if isinstance(leaf, nn.Linear):
            inputs, outputs, kernel = leaf.in_features, leaf.out_features, 1
        elif isinstance(leaf, (nn.Conv2d, nn.Conv3d)):
            inputs, outputs, kernel = leaf.in_channels, leaf.out_channels, math.prod(leaf.kernel_size)
        else:
            continue
        found.append(Matrix(inputs * outputs * kernel, inputs, outputs, leaf.weight.requires_grad, "lora_" in name))
    return found


__all__ = ["ATTENTION", "Matrix", "ModelParts", "Part", "Unit", "decoder_flops", "encoder_flops", "is_trained", "layers_of", "matrices_in"]
