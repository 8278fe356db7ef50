"""LPIPS without torchvision: the networks that it looks through, and torchmetrics' own computation on them.

torchmetrics builds its networks by torchvision, which the package does without; all else of LPIPS, heads included, is in its wheel.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torchmetrics.functional.image.lpips as library
from torch import nn

_ALEX = ((64, 11, 4, 2), "pool", (192, 5, 1, 2), "pool", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))  # channels, kernel, stride, padding
_VGG = tuple("pool" if width == 0 else (width, 3, 1, 1) for width in (64, 64, 0, 128, 128, 0, *[256] * 3, 0, *[512] * 3, 0, *[512] * 3))
# Layers, window and stride of the pools, layers behind which features are taken, and their channels.
_NETS = {
    "alex": (_ALEX, (3, 2), (1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),
    "vgg": (_VGG, (2, 2), (3, 8, 15, 22, 29), (64, 128, 256, 512, 512)),
}


class FeatureStack(nn.Module):
    """The convolutions of a network, numbered as in torchvision's `features`; gives what stands behind some of them.

    Args:
        layers: (channels, kernel, stride, padding) of a convolution with its ReLU, or "pool".
        pool: window and stride of the pools.
        taps: numbers of layers behind which features are taken.
    """

    def __init__(self, layers: Sequence[tuple[int, ...] | str], pool: tuple[int, int], taps: Sequence[int]):
        super().__init__()
        built, width = [], 3
        for layer in layers:
            if layer == "pool":
                built.append(nn.MaxPool2d(*pool))
            else:
                channels, kernel, stride, padding = layer
                built += [nn.Conv2d(width, channels, kernel, stride, padding), nn.ReLU()]
                width = channels
        self.features, self.taps = nn.Sequential(*built), taps

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features at all taps, coarser from one to the next."""
        found = []
        for number, layer in enumerate(self.features):
            images = layer(images)
            if number in self.taps:
                found.append(images)
        return found


class PerceptualDistance(library._LPIPS):
    """torchmetrics' LPIPS on a network of ours.

    Args:
        net: gives as many feature maps as there are heads.
        channels: of each feature map.
    """

    def __init__(self, net: nn.Module, channels: Sequence[int]):
        nn.Module.__init__(self)  # the base builds its network by torchvision
        self.spatial, self.resize, self.L = False, None, len(channels)
        self.scaling_layer, self.net = library.ScalingLayer(), net
        self.lins = nn.ModuleList(library.NetLinLayer(width, use_dropout=True) for width in channels)
        self.requires_grad_(False).eval()


def build_lpips(net: str, weights: Mapping[str, torch.Tensor]) -> PerceptualDistance:
    """LPIPS with the heads of torchmetrics' wheel.

    Args:
        net: "alex" or "vgg".
        weights: of torchvision's model of that name.

    Raises:
        ValueError: weights of another network.
    """
    layers, pool, taps, channels = _NETS[net]
    metric = PerceptualDistance(FeatureStack(layers, pool, taps), channels)
    heads = torch.load(Path(library.__file__).parent / "lpips_models" / f"{net}.pth", map_location="cpu", weights_only=True)
    metric.lins.load_state_dict({name.removeprefix("lin"): tensor for name, tensor in heads.items()})
    wanted = {name: tuple(tensor.shape) for name, tensor in metric.net.state_dict().items()}
    found = {name: tensor for name, tensor in weights.items() if name in wanted}
    if wrong := sorted(name for name, shape in wanted.items() if name not in found or tuple(found[name].shape) != shape):
        raise ValueError(f'These are not the weights of "{net}": {wrong[0]} is not there in the shape {wanted[wrong[0]]}.')
    metric.net.load_state_dict(found)
    return metric


__all__ = ["FeatureStack", "PerceptualDistance", "build_lpips"]
