"""What an image tokenizer is trained against: a network that scores patches of an image as real or reconstructed."""

import torch
from torch import nn

_SLOPE = 0.2
_MOST_WIDENING = 8  # the last layers are no wider than this times the first


class PatchDiscriminator(nn.Module):
    """Convolutions that score overlapping patches of an image (PatchGAN, arXiv 1611.07004, section 3.2).

    Normalizes by groups of channels where the paper does by batch: a score then depends on no other image, so that batches may be divided
    over processes in any way.

    Args:
        in_channels: color channels of the images.
        base_channels: width of the first layer, which doubles with each further one up to 8 times.
        num_layers: layers that halve the side. With 3 of them, the usual number, a score has a patch of 70 × 70 pixels.

    Raises:
        ValueError: a number below 1, or a width that 8 groups do not divide.
    """

    def __init__(self, in_channels: int = 3, base_channels: int = 64, num_layers: int = 3):
        super().__init__()
        if min(in_channels, base_channels, num_layers) < 1 or base_channels % 8:
            raise ValueError(
                f"A discriminator needs at least 1 channel and 1 layer, and a width divisible by 8; got {in_channels} channels, width "
                f"{base_channels} and {num_layers} layers."
            )
        layers = [nn.Conv2d(in_channels, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        width = base_channels
        for index in range(1, num_layers + 1):
            wider = base_channels * min(2**index, _MOST_WIDENING)
            stride = 2 if index < num_layers else 1
            layers += [nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False), nn.GroupNorm(8, wider), nn.LeakyReLU(_SLOPE)]
            width = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        self.least_side = 2**num_layers * 3  # two convolutions of 4 without stride follow, each of which takes a position off
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scores (N, 1, h, w) of pixels (N, channels, height, width) in [-1, 1], higher for real."""
        return self.layers(pixels)


__all__ = ["PatchDiscriminator"]
