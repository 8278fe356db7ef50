"""Judges of drawings, which share no code and no numbers with what made the images of training.

`detect` finds colored shapes by hue and connected components; `DigitJudge` is a classifier fitted on real digits.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

# Hues in degrees, each name up to its bound; the circle closes with red.
_HUE_BOUNDS = ((14, "red"), (40, "orange"), (75, "yellow"), (170, "green"), (255, "blue"), (320, "purple"), (361, "red"))
_LEAST_SATURATION = 0.35
_LEAST_VALUE = 0.25
_LEAST_AREA = 40  # pixels of an image of 48×48; smaller specks are no objects
_REFERENCE_SIDE = 48


@dataclass(frozen=True)
class Detection:
    """One shape that was found: its names, its center (x, y), its area, and the longer side of the box around it, in pixels."""

    shape: str
    colour: str
    centre: tuple[float, float]
    area: int
    side: int


def detect(image: Image.Image) -> list[Detection]:
    """The colored shapes of an image, from left to right."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    hue, saturation, value = _hsv(pixels)
    mask = (saturation > _LEAST_SATURATION) & (value > _LEAST_VALUE)
    labels, count = ndimage.label(mask)
    least_area = _LEAST_AREA * (image.width / _REFERENCE_SIDE) ** 2
    found = []
    for index in range(1, count + 1):
        component = labels == index
        # A blurred edge belongs to the shape up to where it has lost half of the color.
        component &= (saturation > saturation[component].max() / 2) & (value > value[component].max() / 2)
        area = int(component.sum())
        if area < least_area:
            continue
        y, x = np.nonzero(component)
        core = ndimage.binary_erosion(component)
        colour = _colour(hue[core if core.any() else component])
        found.append(Detection(_shape(component), colour, (float(x.mean()), float(y.mean())), area, _side(x, y)))
    return sorted(found, key=lambda detection: detection.centre)


def background(image: Image.Image) -> str:
    """ "white", "black" or "gray": the brightness of the image's edge, by its median."""
    pixels = np.asarray(image.convert("L"))
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    level = np.median(edge)
    return "black" if level < 64 else "gray" if level < 192 else "white"


def _side(x: np.ndarray, y: np.ndarray) -> int:
    return int(max(np.ptp(x), np.ptp(y))) + 1


def _hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value in [0, 1], of pixels (H, W, 3) in [0, 1]."""
    high, low = pixels.max(-1), pixels.min(-1)
    span = np.where(high > low, high - low, 1)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    hue = np.select([high == red, high == green], [(green - blue) / span % 6, (blue - red) / span + 2], default=(red - green) / span + 4)
    return hue * 60, (high - low) / np.where(high > 0, high, 1), high


def _colour(hues: np.ndarray) -> str:
    """Name of the circular mean of hues in degrees."""
    angle = np.angle(np.exp(1j * np.deg2rad(hues)).mean(), deg=True) % 360
    return next(name for bound, name in _HUE_BOUNDS if angle < bound)


def _shape(component: np.ndarray) -> str:
    """Name of a component's form, by where it fills its bounding box."""
    y, x = np.nonzero(component)
    box = component[y.min() : y.max() + 1, x.min() : x.max() + 1]
    height, width = box.shape
    thirds = [band.mean() for band in np.array_split(box, 3, axis=0)]
    if thirds[2] - thirds[0] > 0.35:
        return "triangle"
    h, w = max(round(height / 4), 1), max(round(width / 4), 1)
    corners = np.mean([box[:h, :w].mean(), box[:h, -w:].mean(), box[-h:, :w].mean(), box[-h:, -w:].mean()])
    if corners > 0.75:
        return "square"
    return "circle" if box.mean() > 0.68 else "cross"


class DigitJudge:
    """Reads a drawn digit: a support-vector classifier on 8×8 images.

    Args:
        images: real digits, (number, 8, 8), values in [0, 16] as scikit-learn has them.
        labels: their digits, (number,).
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        from sklearn.svm import SVC

        self.classifier = SVC(C=10, gamma="scale").fit(images.reshape(len(images), -1) / 16, labels)

    def read(self, image: Image.Image) -> int:
        """The digit that an image, bright on dark, looks most like."""
        small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
        return int(self.classifier.predict(np.asarray(small, dtype=np.float64).reshape(1, -1) / 255)[0])
