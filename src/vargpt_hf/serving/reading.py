"""Reading requests within limits: bodies, forms, and the images in them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from ..processing.image_loading_vargpt import bytes_of_base64, check_image, open_image, read_url, to_rgb
from .errors import CLIENT_LEFT, ApiError
from .settings import MIB, ServerSettings

_SMALL_BODY = MIB  # bytes
_LARGE_AT_ONCE = 4  # requests with large bodies that are read and prepared at the same time
_SECONDS_TO_READ = 60
_MOST_VALUES = 200_000  # of a JSON document: each takes a hundred bytes of memory for two of the body


class Gate:
    """Lets few large requests in at once, so that their bodies do not fill the memory."""

    def __init__(self):
        self._places = asyncio.Semaphore(_LARGE_AT_ONCE)

    @asynccontextmanager
    async def enter(self, request: Request) -> AsyncIterator[None]:
        """Around reading and preparing a request.

        Raises:
            ApiError: 503 where the places stay taken, as by clients that send slowly.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) <= _SMALL_BODY:
            yield
            return
        try:
            await asyncio.wait_for(self._places.acquire(), _SECONDS_TO_READ)
        except asyncio.TimeoutError as error:
            raise ApiError(503, "Too many large requests are being read: try again later.", "busy", retry_after=10) from error
        try:
            yield
        finally:
            self._places.release()


async def read_json(request: Request) -> Any:
    """The JSON document of a request.

    Raises:
        ApiError: 400 for no JSON, 408 for a body that does not come, 413 for too much of it, 415 for another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # pages of other origins can send anything else without being asked
        raise ApiError(415, f"The Content-Type is {kind!r}; it must be application/json.")
    body = await _in_time(request.body())
    if body.count(b",") > _MOST_VALUES or body.count(b"[") + body.count(b"{") > _MOST_VALUES:
        raise ApiError(413, f"The body has more than {_MOST_VALUES:,} values.", "too_many_values")
    try:
        return json.loads(body) if len(body) < _SMALL_BODY else await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is no JSON: {error}.", "invalid_json") from error


async def read_form(request: Request, settings: ServerSettings) -> FormData:
    """The form of a request, with its files in memory or, large ones, in temporary files.

    Raises:
        ApiError: 400 for a broken form, 408 for a body that does not come, 413 for too much of it, 415 for another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(415, f"The Content-Type is {kind!r}; it must be multipart/form-data.")
    limits = {"max_files": settings.max_images + 1, "max_fields": 100, "max_part_size": 4 * settings.max_prompt_chars}
    return await _in_time(request.form(**limits))  # Starlette raises 400 by itself


async def _in_time(reading: Any) -> Any:
    try:
        return await asyncio.wait_for(reading, _SECONDS_TO_READ)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"The body has not arrived within {_SECONDS_TO_READ} s.") from error
    except ClientDisconnect as error:
        raise ApiError(CLIENT_LEFT, "The client went away before its request was whole.") from error


class RequestImages:
    """The images of one request: counted, and decoded within the limits of the server.

    Attributes:
        pixels: of all images so far.
    """

    def __init__(self, settings: ServerSettings):
        self.settings = settings
        self.count = 0
        self.pixels = 0

    def open(self, content: bytes, name: str) -> Image.Image:
        """An image of a file's bytes, its size checked, not decoded yet.

        Raises:
            ApiError: 400 for bytes that are no image, 413 for too many images or pixels.
        """
        self.count += 1
        if self.count > self.settings.max_images:
            raise ApiError(413, f"The request brings more than {self.settings.max_images} images.", "too_many_images")
        try:
            image = open_image(content, name)
            self.pixels += image.width * image.height
            if self.pixels > self.settings.max_pixels:
                raise ApiError(
                    413,
                    f"The request's images have more than {self.settings.max_pixels:,} pixels together: make them smaller.",
                    "image_too_large",
                )
            check_image(image, name, self.settings.max_pixels)
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error), "invalid_image") from error
        return image

    def decode(self, image: Image.Image, name: str) -> Image.Image:
        """An opened image in RGB.

        Raises:
            ApiError: 400 for a damaged file.
        """
        try:
            return to_rgb(image, name, self.settings.max_pixels)
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error), "invalid_image") from error

    def from_url(self, url: Any, name: str) -> Image.Image:
        """The image of a `data:` URL; of an http(s) address only where the server allows that.

        Raises:
            ApiError: 400 for other addresses, and for such that give no image.
        """
        if not isinstance(url, str):
            raise ApiError(400, f"{name} has no `url` that is a text.", "invalid_image")
        try:
            if url.startswith("data:"):
                content = bytes_of_base64(url)
            elif url.startswith(("http://", "https://")) and self.settings.allow_urls:
                content = read_url(url)
            elif url.startswith(("http://", "https://")):
                raise ApiError(
                    400, f"{name} is an address, which this server does not fetch: send the image as a data: URL.", "url_not_allowed"
                )
            else:
                raise ApiError(400, f"{name} must be a data: URL, such as data:image/png;base64,….", "invalid_image")
        except (ValueError, OSError) as error:
            raise ApiError(400, f"{name} cannot be read: {error}", "invalid_image") from error
        return self.decode(self.open(content, name), name)


async def bytes_of(form: FormData, name: str) -> list[bytes]:
    """The files of a form under a name, or under that name with [].

    Raises:
        ApiError: 400 for a field that is no file.
    """
    found = [value for key in (name, f"{name}[]") for value in form.getlist(key)]
    if not all(isinstance(value, UploadFile) for value in found):
        raise ApiError(400, f"`{name}` must be a file.", "invalid_value", name)
    return [await value.read() for value in found]


__all__ = ["Gate", "RequestImages", "bytes_of", "read_form", "read_json"]
