"""What a server may do, and how much of it: all limits in one place."""

import ipaddress
import math
from dataclasses import dataclass, fields

MIB = 2**20
KEY_VARIABLE = "VARGPT_API_KEY"


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server.

    Args:
        host, port: where to listen; without a key only this machine's own addresses are taken.
        api_key: what requests must bring as `Authorization: Bearer …`; None asks for none.
        allow_urls: fetch images from http(s) addresses in requests. The server then asks addresses that strangers choose, those inside its
            own network included.
        allowed_origins: pages of other origins whose scripts may ask this server (CORS); "*" for all.
        max_body_bytes: of one request.
        max_prompt_chars: of all texts of one request together.
        max_images: that one request may bring.
        max_pixels: of all images of one request together.
        max_drawings: images (or answers) that one request may ask for, `n`.
        max_tokens: of an answer; also what a request gets that does not say.
        max_seconds: from the arrival of a request to its end.
        max_waiting: answers that may wait; further requests get 429.
        max_waiting_bytes: of the images that waiting requests hold.
        max_batch: answers that are computed together.
        memory_bytes: what a batch may take beside the model; None takes half of what is free when the server starts.
        shutdown_seconds: how long a shutdown waits for what runs.

    Raises:
        ValueError: a limit below its least value, or an address that others can reach, without a key.
        TypeError: a limit that is no number.
    """

    host: str = "localhost"
    port: int = 8000
    api_key: str | None = None
    allow_urls: bool = False
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 * MIB
    max_prompt_chars: int = 100_000
    max_images: int = 16
    max_pixels: int = 32 * MIB
    max_drawings: int = 8
    max_tokens: int = 1024
    max_seconds: float = 300.0
    max_waiting: int = 64
    max_waiting_bytes: int = 512 * MIB
    max_batch: int = 16
    memory_bytes: int | None = None
    shutdown_seconds: float = 60.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not field.name.startswith(("max_", "memory_", "shutdown_")) or value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"`{field.name}` must be a number, got {value!r} of type {type(value).__name__}.")
            if not math.isfinite(value) or value < 1:
                raise ValueError(f"`{field.name}` must be at least 1, got {value}.")
        if self.max_tokens < 2:
            raise ValueError(f"`max_tokens` must be at least 2, which an image takes, got {self.max_tokens}.")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"`port` must be from 0 to 65535, got {self.port}.")
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError(f"The API key is empty: set {KEY_VARIABLE} to a secret text, or unset it.")
        if self.api_key is None and not is_local(self.host):
            raise ValueError(
                f"The server would listen at {self.host!r}, where others can reach it, and there is no API key: set the environment variable "
                f"{KEY_VARIABLE} to a secret text, or listen at localhost."
            )


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


__all__ = ["KEY_VARIABLE", "ServerSettings", "is_local"]
