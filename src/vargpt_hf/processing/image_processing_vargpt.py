"""Images to draw: pixels in [-1, 1] of a size that the image tokenizer takes, and back to PIL.

Each image has the schedule of scales whose aspect ratio is nearest to its own, or one that is given. A schedule stands here as a list of
scales, coarse to fine: the side of a square grid, or (height, width), in positions; its last grid times `downsampling` is the size in pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.processing_utils import ImagesKwargs

from .image_loading_vargpt import MAX_PIXELS, fetch_images, flatten

VAR_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
OUTPUT_IMAGE_SETTINGS = ("schedules", "downsampling", "resize_factor", "resample", "max_pixels")


class VargptOutputImagesKwargs(ImagesKwargs, total=False):
    """Options of `VargptImageProcessor` beyond those that every image processor has; see there."""

    random_crop: bool
    schedule_ids: list[int]


class VargptCLIPImageProcessor(CLIPImageProcessorPil):
    """CLIP's preparation of images to read, by Pillow wherever it runs: torchvision's resizing differs by some levels."""


class VargptImageProcessor(BaseImageProcessor):
    """Prepares images to draw, and turns drawn pixels into PIL images.

    Args:
        schedules: scale schedules that images may have, each a list of scales; the first one is the default.
        downsampling: pixels per position of the last scale, along one side.
        resize_factor: how much larger than its final size an image is made before it is cropped, from 1.
        resample: Pillow's number of the filter.
        max_pixels: larger images, to read or to draw, are refused before they are decoded.

    Raises:
        ValueError: a setting that is none of these.
    """

    model_input_names = ["output_pixel_values"]
    valid_kwargs = VargptOutputImagesKwargs

    def __init__(
        self,
        schedules: Sequence[Sequence[int | Sequence[int]]] = (VAR_SIDES,),
        downsampling: int = 16,
        resize_factor: float = 1.125,
        resample: int = PILImageResampling.LANCZOS,
        max_pixels: int = MAX_PIXELS,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.schedules = [[scale if isinstance(scale, int) else list(scale) for scale in schedule] for schedule in schedules]
        self.downsampling = downsampling
        self.resize_factor = resize_factor
        self.resample = int(resample)
        self.max_pixels = max_pixels
        sides = [side for schedule in self.grids for grid in schedule for side in grid]
        if not self.schedules or not all(self.schedules) or min(sides) < 1:
            raise ValueError(f"schedules must be one or more lists of scales, sides or (height, width) of at least 1 each; got {schedules}.")
        if downsampling < 1 or max_pixels < 1:
            raise ValueError(f"downsampling ({downsampling}) and max_pixels ({max_pixels}) must be at least 1.")
        if not resize_factor >= 1:
            raise ValueError(f"resize_factor must be at least 1, else no crop of the final size fits; got {resize_factor}.")

    @property
    def grids(self) -> list[list[tuple[int, int]]]:
        """Grids (height, width) of the scales of each schedule, in positions."""
        return [[(scale, scale) if isinstance(scale, int) else tuple(scale) for scale in schedule] for schedule in self.schedules]

    @property
    def num_positions(self) -> list[int]:
        """Positions, which are codes, of an image of each schedule."""
        return [sum(height * width for height, width in schedule) for schedule in self.grids]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width in pixels of an image of each schedule."""
        return [(schedule[-1][0] * self.downsampling, schedule[-1][1] * self.downsampling) for schedule in self.grids]

    def nearest_schedule(self, height: float, width: float) -> int:
        """The schedule whose images come nearest to a size in pixels: first in aspect ratio, then in area.

        Raises:
            ValueError: a side that is not positive.
        """
        if not (height > 0 and width > 0):
            raise ValueError(f"An image has a positive height and width, got {height} and {width}.")
        distances = [(abs(rows / columns - height / width), abs(rows * columns - height * width)) for rows, columns in self.sizes]
        return min(range(len(distances)), key=distances.__getitem__)

    def fetch_images(self, images: Any, name: str = "output_images") -> Any:
        """Images in any form, or nested lists of them, as RGB PIL images: see `fetch_images` in image_loading_vargpt.py."""
        return fetch_images(images, name, self.max_pixels)

    def preprocess(
        self,
        images: Any,
        schedule_ids: Sequence[int] | int | None = None,
        random_crop: bool = False,
        generator: torch.Generator | int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Prepares images to draw.

        Args:
            images: one image, a list, or nested lists (flattened in reading order); forms as in `fetch_images`.
            schedule_ids: schedule of each image, or one of all; by default the one nearest in aspect ratio, then in area.
            random_crop: crop at a random position (training) instead of the center.
            generator: source of the random positions, or a seed; torch's global generator by default.
            return_tensors: `"pt"` for tensors; else numpy arrays.

        Returns:
            `output_pixel_values` (N, 3, height, width), float32 in [-1, 1], 0 beyond the right and lower edges of smaller images where
            sizes differ; and where there are several schedules `output_image_schedule_ids` (N,).

        Raises:
            ValueError: an image that cannot be used, or schedules that are unknown or other in number than the images.
        """
        images = flatten(self.fetch_images(images))
        if schedule_ids is None:
            schedule_ids = [self.nearest_schedule(image.height, image.width) for image in images]
        schedule_ids = self.check_schedule_ids(schedule_ids, len(images))
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        sizes = [self.sizes[index] for index in schedule_ids] or self.sizes[:1]
        values = np.zeros((len(images), 3, max(size[0] for size in sizes), max(size[1] for size in sizes)), dtype=np.float32)
        for value, image, (height, width) in zip(values, images, sizes):
            cropped = np.asarray(self._crop(image, height, width, random_crop, generator))
            value[:, :height, :width] = cropped.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0
        data = {"output_pixel_values": values}
        if len(self.schedules) > 1:
            data["output_image_schedule_ids"] = np.asarray(schedule_ids, dtype=np.int64)
        return BatchFeature(data, tensor_type=return_tensors)

    def check_schedule_ids(self, schedule_ids: Sequence[int] | int, num_images: int) -> list[int]:
        """One schedule for each of N images; ValueError where there are others, or others in number."""
        ids = [int(index) for index in np.atleast_1d(np.asarray(schedule_ids))]
        ids = ids * num_images if np.ndim(schedule_ids) == 0 else ids
        if len(ids) != num_images or any(not 0 <= index < len(self.schedules) for index in ids):
            raise ValueError(
                f"Schedules of images to draw are numbers from 0 to {len(self.schedules) - 1}, one for each of the {num_images} images; "
                f"got {ids}."
            )
        return ids

    def _crop(self, image: Image.Image, height: int, width: int, random_crop: bool, generator: torch.Generator | None) -> Image.Image:
        """Resizes an image until it covers its final size with a margin, then cuts that size out of it."""
        least_height, least_width = round(self.resize_factor * height), round(self.resize_factor * width)
        # The longer side is rounded down, as torchvision's Resize does.
        if image.width * least_height <= image.height * least_width:
            new_width, new_height = least_width, max(least_height, int(least_width * image.height / image.width))
        else:
            new_width, new_height = max(least_width, int(least_height * image.width / image.height)), least_height
        if (new_width, new_height) != image.size:
            image = image.resize((new_width, new_height), resample=self.resample)
        if random_crop:
            left = int(torch.randint(new_width - width + 1, (), generator=generator))
            top = int(torch.randint(new_height - height + 1, (), generator=generator))
        else:
            left, top = round((new_width - width) / 2), round((new_height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def post_process(self, pixels: torch.Tensor | Sequence[torch.Tensor]) -> list[Image.Image]:
        """Pixels in [-1, 1], (N, 3, height, width) or N of (3, height, width), to N RGB images.

        Values are clamped, mapped to 0..255 and rounded to the nearest integer (halves to even), so that what
        `preprocess` made of 8-bit pixels comes back exactly.

        Raises:
            ValueError: another shape, NaN or infinity.
        """
        if isinstance(pixels, (list, tuple)) and all(isinstance(one, torch.Tensor) for one in pixels):
            return [image for one in pixels for image in self.post_process(one[None])]
        if not isinstance(pixels, torch.Tensor) or not pixels.is_floating_point():
            kind = pixels.dtype if isinstance(pixels, torch.Tensor) else type(pixels).__name__
            raise TypeError(f"pixels must be a tensor of floating-point numbers in [-1, 1], got {kind}.")
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must have shape (N, 3, H, W), got {tuple(pixels.shape)}.")
        if not torch.isfinite(pixels).all():
            raise ValueError("pixels contain NaN or infinity: the model that drew them has diverged or overflowed.")
        levels = ((pixels.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(image) for image in levels.permute(0, 2, 3, 1).cpu().numpy()]


VargptImageProcessor.register_for_auto_class()
VargptCLIPImageProcessor.register_for_auto_class()

__all__ = ["VargptCLIPImageProcessor", "VargptImageProcessor"]
