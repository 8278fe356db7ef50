"""Images of random colours, the same ones in every run: those of `PIL.Image.effect_noise` depend on what was drawn before."""

import torch
from PIL import Image


def noise_image(seed: int, width: int = 48, height: int = 48) -> Image.Image:
    pixels = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
