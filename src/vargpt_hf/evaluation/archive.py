"""Many images in one .npz array, as evaluators of class-conditional models read them."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..restartable import write_whole
from .image_files import read_image


def write_npz(file: Path, images: Sequence[Path]) -> None:
    """Writes images as `arr_0`, (N, height, width, 3) uint8, one after the other, so that memory holds one.

    Raises:
        ValueError: images of several sizes, or none.
        OSError: what cannot be read or written.
    """
    if not images:
        raise ValueError(f"There are no images for {file}.")
    first = np.asarray(read_image(images[0]))
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": (len(images), *first.shape)}

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as array:
            np.lib.format.write_array_header_1_0(array, header)
            for image in images:
                content = np.asarray(read_image(image))
                if content.shape != first.shape:
                    shapes = f"{image} has the shape {content.shape}, {images[0]} {first.shape}"
                    raise ValueError(f"{shapes}; an array holds images of one size.")
                array.write(content.tobytes())

    write_whole(file, write)


__all__ = ["write_npz"]
