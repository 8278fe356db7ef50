"""What training an image tokenizer takes, worked out before it begins."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...modeling.image_tokenizer_vargpt import VargptImageTokenizer, VargptImageTokenizerConfig
from .discriminator import PatchDiscriminator

_FORWARD_AND_BACKWARD = 3  # of weights that learn: forward, gradients of the inputs, gradients of the weights
_FORWARD_AND_INPUTS = 2  # of weights that are constant
_BYTES_OF_WEIGHT = 16  # float32: the weight, its gradient, and Adam's two moments


@dataclass(frozen=True)
class TokenizerCost:
    """What one image takes in a step, and what the weights take.

    Attributes:
        flop: floating-point operations of one image, a multiplication and an addition being two; the perceptual network not counted.
        activations: outputs of all layers of encoder and decoder for one image, in numbers; most are kept until the backward pass.
        weight_bytes: of weights, gradients, moments, and the average of the weights.
    """

    flop: int
    activations: int
    weight_bytes: int


def cost_of(
    model_class: type[VargptImageTokenizer],
    config: VargptImageTokenizerConfig,
    adversarial: bool = False,
    ema: bool = False,
    discriminator: tuple[int, int] = (64, 3),
) -> TokenizerCost:
    """The cost of training an image tokenizer of that configuration on images of its default schedule; computes nothing, and needs no memory.

    Args:
        adversarial: with a discriminator.
        ema: with an average of the weights.
        discriminator: its `base_channels` and `num_layers`.
    """
    with torch.device("meta"):
        model = model_class(config)
        pixels = torch.empty(1, config.in_channels, *config.image_size())
        opponent = PatchDiscriminator(config.in_channels, *discriminator)
    activations, hooks = [], []
    for module in model.modules():
        if not list(module.children()):
            hooks.append(module.register_forward_hook(lambda module, args, output: activations.append(output.numel())))
    with FlopCounterMode(display=False) as counter:
        model.decode_latents(model.encode_latents(pixels))
    for hook in hooks:
        hook.remove()
    flop = _FORWARD_AND_BACKWARD * counter.get_total_flops()
    weights = _num_weights(model)
    weight_bytes = weights * (_BYTES_OF_WEIGHT + (4 if ema else 0))
    if adversarial:
        with FlopCounterMode(display=False) as counter:
            opponent(pixels)
        flop += (2 * _FORWARD_AND_BACKWARD + _FORWARD_AND_INPUTS) * counter.get_total_flops()  # images, reconstructions, and these once more
        weight_bytes += _num_weights(opponent) * _BYTES_OF_WEIGHT
    return TokenizerCost(flop, sum(activations), weight_bytes)


def _num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


__all__ = ["TokenizerCost", "cost_of"]
