"""Images of files as tensors that metrics take."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def files_of_images(folder: str | Path) -> list[Path]:
    """The image files of a folder and its subfolders, sorted by their paths in it.

    Raises:
        ValueError: a folder that is not there, or without images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one with images.")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
    if not found:
        raise ValueError(f"{folder} holds no images ({', '.join(ENDINGS)}).")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_image(file: str | Path) -> Image.Image:
    """An image of a file, in RGB.

    Raises:
        ValueError: a file that is no image.
        OSError: a file that cannot be read.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (Image.UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{file} is no image that can be read: {error}.") from error


def as_bytes(image: Image.Image) -> torch.Tensor:
    """An image as (3, height, width) uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def as_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """Images of one size as (N, 3, height, width) in [-1, 1].

    Raises:
        ValueError: none, or several sizes.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"Images must have one size to be compared; got {sorted(sizes) or 'none'}.")
    return torch.stack([as_bytes(image) for image in images]).float() / 127.5 - 1


def batches_of_one_size(images: Sequence[Image.Image], batch_size: int) -> Iterator[torch.Tensor]:
    """Images in order as batches (n, 3, height, width) uint8; a batch ends where the size changes.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    batch: list[torch.Tensor] = []
    for image in images:
        content = as_bytes(image)
        if batch and (len(batch) == batch_size or batch[0].shape != content.shape):
            yield torch.stack(batch)
            batch = []
        batch.append(content)
    if batch:
        yield torch.stack(batch)


__all__ = ["as_bytes", "as_pixels", "batches_of_one_size", "files_of_images", "read_image"]
