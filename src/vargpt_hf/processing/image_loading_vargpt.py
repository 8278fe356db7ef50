"""Any form of an image → a checked image of 8 bits in RGB.

All checks and color conversions are made here, so that errors name the image, the reason and the remedy, whichever processor follows.
"""

import base64
import binascii
import http.client
import io
import os
import stat
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

# Only what cameras, editors and data sets write: other readers of Pillow start programs (EPS), or are not worth their risks.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")  # of PNG, JPEG, GIF, WebP, BMP, TIFF
MAX_FILE_BYTES = 256 * 2**20
URL_TIMEOUT_SECONDS = 30  # without an answer
URL_SECONDS_IN_ALL = 120
MAX_NESTING = 8  # of lists of images
MAX_PIXELS = 64 * 2**20
# Resizing the short side of a longer strip than this would blow it up beyond any use (and memory).
MAX_ASPECT_RATIO = 200
EXIF_ORIENTATION = 0x0112
# PIL also calls these 32 bit ("I"), but only 16-bit files open so.
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")

_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
):
    _OPENER.add_handler(_handler())


def fetch_images(images: Any, name: str = "images", max_pixels: int = MAX_PIXELS) -> Any:
    """Turns an image, or nested lists of images, into 8-bit RGB PIL images in the same nesting.

    An image is a PIL image, a path, an http(s) URL, encoded bytes, base64 (plain or a `data:` URL), a dict with `bytes` or `path`, or an
    array or tensor: HWC, CHW or HW; integers 0..255, 16-bit unsigned, or floats 0..1; with one dimension more it is a batch.
    Transparency is laid on white, EXIF orientation is applied, 16 bits are scaled to 8; nothing else changes.

    Args:
        name: what the images are called in errors, which name each one as an index into it.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        ValueError: an image that cannot be used, by its name, with the reason.
    """
    if name.count("[") > MAX_NESTING:
        raise ValueError(f"{name[:40]}... is nested more than {MAX_NESTING} lists deep: give a list of images, or one list a row.")
    if isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4):
        return [fetch_images(image, f"{name}[{index}]", max_pixels) for index, image in enumerate(images)]
    return to_rgb(open_image(images, name), name, max_pixels)


def flatten(nested: Any) -> list[Any]:
    """The leaves of nested lists and tuples, in reading order; a single leaf gives a list of one."""
    if isinstance(nested, (list, tuple)):
        return [leaf for element in nested for leaf in flatten(element)]
    return [nested]


def open_image(source: Any, name: str) -> Image.Image:
    """Opens any accepted form of an image (see [`fetch_images`]) without decoding files yet."""
    if isinstance(source, Mapping):
        source = next((source[key] for key in ("bytes", "path", "url", "base64", "image") if source.get(key) is not None), source)
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return image_from_array(source, name)
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str):
        source, name = read_string(source, name)
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise ValueError(
            f"{name} is a {type(source).__name__}, which is no image. Pass a PIL image, path, URL, bytes, base64, numpy array or tensor."
        )
    source = bytes(source)
    Image.init()
    try:
        return Image.open(io.BytesIO(source), formats=[known for known in FORMATS if known in Image.OPEN])
    except Image.DecompressionBombError as error:  # Pillow's own limit, by which it protects whole programs
        raise ValueError(f"{name} is too large: {error} Make it smaller.") from error
    except Exception as error:  # PIL's readers raise many kinds; all mean that these bytes are of no use
        raise ValueError(
            f"{name} cannot be read as an image ({len(source)} bytes): {error}. Check that the file is complete and "
            f"of a format that is read: {', '.join(FORMATS)}."
        ) from error


def read_string(text: str, name: str) -> tuple[bytes, str]:
    """Encoded bytes behind a URL, a path or base64 text, and the image's name with its origin added.

    Raises:
        ValueError: none of these, something that is no regular file, more than `MAX_FILE_BYTES`, or an address that does not answer in time.
    """
    shown = text if len(text) <= 120 else f"{text[:40]}...{text[-77:]}"  # with the end, where the name of a file is
    name = f"{name} ({shown!r})"
    try:
        if text.startswith(("http://", "https://")):
            return read_url(text), name
        if "\0" not in text and os.path.exists(text):
            return read_file(text), name
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"{name} cannot be fetched: {error}. Check the address or path and try again.") from error
    encoded = text.split(",", 1)[-1] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True), name
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"{name} is neither an existing file, nor an http(s) URL, nor base64. Check the path (relative paths start at {os.getcwd()!r})."
        ) from error


def read_url(url: str) -> bytes:
    """The body that an address answers with; OSError or ValueError unless it ends in time, and within the limit of bytes."""
    end = time.monotonic() + URL_SECONDS_IN_ALL
    # Redirections stay with http(s): no handler here knows files or FTP. Some servers refuse Python's default agent.
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 (compatible; transformers)"})
    with _OPENER.open(request, timeout=URL_TIMEOUT_SECONDS) as response:
        body = bytearray()
        # One piece at a time, since a time-out counts anew for each: a server that sends a byte now and then would never end.
        while piece := response.read1(2**16):
            body += piece
            if len(body) > MAX_FILE_BYTES:
                raise ValueError(f"it sends more than {MAX_FILE_BYTES:,} bytes")
            if time.monotonic() > end:
                raise TimeoutError(f"it has not sent all within {URL_SECONDS_IN_ALL} seconds")
        return bytes(body)


def read_file(path: str) -> bytes:
    """What a regular file holds; OSError or ValueError of anything else (a pipe would wait, a device never end), and beyond the limit."""
    if not os.path.isfile(path):  # before it is opened, which may already do something; after that once more, of what was opened
        raise ValueError("it is no regular file")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it holds more than {MAX_FILE_BYTES:,} bytes")
    return content


def bytes_of_base64(text: str) -> bytes | None:
    """The image that a text holds in base64 or as a `data:` URL; None of a text that is an address or path.

    Raises:
        ValueError: a `data:` URL without base64.
    """
    is_url = text.startswith("data:")
    encoded = text.split(",", 1)[-1] if is_url else text
    if not is_url and not (len(text) >= 64 and text.lstrip().startswith(BASE64_STARTS)):
        return None
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        if is_url:
            raise ValueError(f"the image {text[:40] + '...'!r} is a data: URL without base64: {error}.") from error
        return None


def image_from_array(array: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    """Array or tensor (HW, HWC or CHW) with 1, 2 (grey, alpha), 3 or 4 channels to a PIL image of 8 or 16 bits."""
    prefers_channels_first = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        try:
            array = array.detach().cpu()
            array = (array.float() if array.is_floating_point() else array).numpy()
        except Exception as error:  # of sparse and quantized ones, and of such without values
            raise ValueError(f"{name} is a tensor that cannot be made into an array: {error}. Pass a dense one of numbers.") from error
    shape = array.shape
    if array.ndim == 3:
        first, last = shape[0] in (1, 2, 3, 4), shape[2] in (1, 2, 3, 4)
        if first and (prefers_channels_first or not last):
            array = array.transpose(1, 2, 0)
        array = array[..., 0] if array.shape[2] == 1 else array
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)):
        raise ValueError(f"{name} has shape {tuple(shape)}; expected HW, HWC or CHW with 1 to 4 channels.")
    if array.size == 0:
        raise ValueError(f"{name} has no pixels: its shape is {tuple(shape)}. Remove it or pass another image.")
    if array.dtype == np.uint16:
        array = scale_16_to_8_bits(array)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # written so that NaN is refused too
            raise ValueError(
                f"{name} has floating-point values from {array.min():.4g} to {array.max():.4g}; they must lie in "
                "[0, 1]. What the model drew, in [-1, 1], goes through `post_process` first; 0..255 must be integers."
            )
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise ValueError(f"{name} has dtype {array.dtype} or values outside 0..255; convert it to uint8.")
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Decodes an image into plain RGB, 8 bits a channel, upright, transparency on white; refuses unusable ones."""
    check_image(image, name, max_pixels)
    try:
        image.load()
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode in SIXTEEN_BIT_MODES:
            levels = np.asarray(image).astype(np.int64)
            if levels.min() < 0 or levels.max() > 65535:
                raise ValueError("its values do not lie in 0..65535")
            image = Image.fromarray(scale_16_to_8_bits(levels))
        if image.mode == "F":
            raise ValueError("mode F (floating point) has no fixed range; convert it to 8 bits yourself")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        check_image(image, name, max_pixels)  # of some formats the header does not tell what decoding gives
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # a broken file makes PIL raise OSError, SyntaxError, struct.error, ...
        raise ValueError(
            f"{name} ({image.format or 'image'}, {image.width}x{image.height}, mode {image.mode}) cannot be decoded: "
            f"{error}. The file is damaged or of an unusual kind; save it anew as PNG or JPEG."
        ) from error


def check_image(image: Image.Image, name: str, max_pixels: int) -> None:
    """Refuses empty, gigantic, extremely long and animated images; reads only the header of a file."""
    width, height = image.size
    if width == 0 or height == 0:
        raise ValueError(f"{name} has no pixels: it is {width}x{height}. Remove it or pass another image.")
    if width * height > max_pixels:
        raise ValueError(
            f"{name} is too large: {width}x{height} is {width * height} pixels, the limit is {max_pixels}. Make it "
            "smaller, or raise `max_pixels` of the image processor."
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"{name} is {width}x{height}: one side is more than {MAX_ASPECT_RATIO} times the other. Crop it first.")
    try:
        frames = getattr(image, "n_frames", 1)  # only PIL's multi-frame readers have it
    except Exception:  # a damaged file; decoding it says more
        frames = 1
    # An MPO, which many cameras write, is a photograph with previews of itself; its first frame is the photograph.
    if frames > 1 and image.format != "MPO":
        raise ValueError(
            f"{name} is animated or has several pages ({frames} frames), and one image is needed. Pick a frame: "
            "image = PIL.Image.open(...); image.seek(0); pass image.copy()."
        )


def scale_16_to_8_bits(levels: np.ndarray) -> np.ndarray:
    """0..65535 to 0..255, rounded to the nearest level (65535 = 257 * 255)."""
    return ((levels.astype(np.int64) + 128) // 257).astype(np.uint8)


__all__ = ["MAX_PIXELS", "fetch_images", "flatten"]
