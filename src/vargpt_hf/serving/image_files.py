"""Drawn images as files: encoded with what they were drawn from, read back, and kept for a while under an address."""

import base64
import io
import json
import secrets
import threading
import time
from collections import OrderedDict
from typing import Any

from PIL import Image, PngImagePlugin

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_KEY = "vargpt"  # of the text chunk of a PNG
_MAX_FACTS = 2**16  # characters


def encode(image: Image.Image, file_format: str = "png", compression: int = 100, facts: dict[str, Any] | None = None) -> bytes:
    """An image as the bytes of a file.

    Args:
        file_format: "png", "jpeg" or "webp".
        compression: quality of JPEG and WebP, 0 to 100; at 100 WebP is lossless.
        facts: what the image was drawn from (prompt, seed, settings), written into a PNG.
    """
    file = io.BytesIO()
    if file_format == "png":
        info = PngImagePlugin.PngInfo()
        if facts:
            info.add_itxt(_KEY, json.dumps(facts, ensure_ascii=False))
        image.save(file, "PNG", pnginfo=info)
    elif file_format == "webp" and compression == 100:
        image.save(file, "WEBP", lossless=True)
    else:
        image.save(file, FORMATS[file_format], quality=min(compression, 95) if file_format == "jpeg" else compression)
    return file.getvalue()


def facts_of(image: Image.Image) -> dict[str, Any]:
    """What a PNG of ours says it was drawn from; {} of any other image."""
    try:
        facts = json.loads(getattr(image, "text", {}).get(_KEY, "{}")[:_MAX_FACTS])
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def base64_of(content: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(content).decode()


def data_url(content: bytes, file_format: str) -> str:
    """A file as a `data:` URL."""
    return f"data:image/{file_format};base64,{base64_of(content)}"


class ImageStore:
    """Files that can be fetched for a while, under names that nobody guesses.

    Args:
        max_bytes: kept together; the oldest go first.
        max_seconds: how long each is kept.
    """

    def __init__(self, max_bytes: int = 64 * 2**20, max_seconds: float = 3600):
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, content: bytes, file_format: str) -> str:
        """Keeps a file; returns its name."""
        name = f"{secrets.token_urlsafe(16)}.{file_format}"
        with self._lock:
            self._files[name] = (time.monotonic(), content)
            self._bytes += len(content)
            while self._files and (self._bytes > self.max_bytes or self._is_old(next(iter(self._files.values())))):
                self._bytes -= len(self._files.popitem(last=False)[1][1])
        return name

    def get(self, name: str) -> bytes | None:
        """A file by its name; None where there is none, or none any more."""
        with self._lock:
            found = self._files.get(name)
        return None if found is None or self._is_old(found) else found[1]

    def _is_old(self, file: tuple[float, bytes]) -> bool:
        return time.monotonic() - file[0] > self.max_seconds


__all__ = ["FORMATS", "ImageStore", "base64_of", "data_url", "encode", "facts_of"]
