"""The real handwritten digits that scikit-learn ships, as 48 x 48 images: white strokes on black.

1797 images of 8 x 8 grey levels (0 to 16), written by 43 people; a fixed split that keeps the share of every digit.
"""

from functools import cache

import numpy as np
from PIL import Image

IMAGE_SIZE = 48
TRAIN_SIZE = 1400
SPLIT_SEED = 20250
LEVELS = 16  # the brightest grey level of the source


@cache
def load_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 8, 8) float, 0 to 16, and labels (N,) int64 of "train" (1400) or "test" (397).

    Raises:
        ValueError: another name of a split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    train, test = train_test_split(np.arange(len(source.target)), train_size=TRAIN_SIZE, random_state=SPLIT_SEED, stratify=source.target)
    index = np.sort(train if split == "train" else test)
    return source.images[index], source.target[index].astype(np.int64)


def digit_image(pixels: np.ndarray) -> Image.Image:
    """A digit of (8, 8) grey levels, 0 to 16, as a smooth 48 x 48 RGB image."""
    levels = np.clip(np.asarray(pixels, dtype=np.float32) * (255.0 / LEVELS), 0, 255).round().astype(np.uint8)
    return Image.fromarray(levels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).convert("RGB")


def augmented(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same digit, moved by up to 3 pixels, turned by up to 10 degrees and scaled by up to 8 percent."""
    angle = np.deg2rad(rng.uniform(-10, 10))
    scale = rng.uniform(0.92, 1.08)
    shift_x, shift_y = rng.uniform(-3, 3, size=2)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    middle = (IMAGE_SIZE - 1) / 2
    # Pillow wants the way back: where a pixel of the result comes from, about the middle of the image.
    offset_x = middle - cos * (middle + shift_x) - sin * (middle + shift_y)
    offset_y = middle + sin * (middle + shift_x) - cos * (middle + shift_y)
    matrix = (cos, sin, offset_x, -sin, cos, offset_y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=(0, 0, 0))


def sample_digit(rng: np.random.Generator, split: str = "train", augment: bool = False) -> tuple[Image.Image, int]:
    """A random image of the split and its digit; `augment` moves it a little, which only training wants."""
    images, labels = load_split(split)
    i = int(rng.integers(len(labels)))
    image = digit_image(images[i])
    return (augmented(image, rng) if augment else image), int(labels[i])
