"""What every request passes: the key, the size of its body, and the clock."""

import asyncio
import contextlib
import hmac
import time
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError

if TYPE_CHECKING:
    from .app import Service

_OPEN = ("/health", "/images/")  # without a key: the name of an image is its key
_DRAINED_BODIES = 4  # how much more of a body than it may have is read, so that the client comes to read the answer
_SECONDS_TO_DRAIN = 10
_UNKNOWN = "other"  # whatever else strangers ask for must not fill the metrics


class Guard:
    """Refuses requests without the key (401), of other pages (403) and with too large bodies (413), and notes how long each took.

    Args:
        app: what the others reach.
        service: whose limits and metrics.
    """

    def __init__(self, app: ASGIApp, service: "Service"):
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in self.service.paths else _UNKNOWN
            self.service.engine.metrics.requests.labels(path, str(status)).inc()
            self.service.engine.metrics.seconds.labels(path).observe(time.monotonic() - start)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        limit, length = self.service.settings.max_body_bytes, headers.get(b"content-length", "0")
        error = None
        if not self._has_key(scope, headers.get(b"authorization", "")):
            error = ApiError(401, "The API key is missing or wrong: send it as `Authorization: Bearer …`.", "invalid_api_key")
        elif not self._is_own(headers):
            error = ApiError(403, "Pages of other origins may not ask this server: start it with --allow-origin.", "origin_not_allowed")
        elif length.isdecimal() and int(length) > limit:
            error = _too_large(limit)
        if error is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_drain(receive, _DRAINED_BODIES * limit), _SECONDS_TO_DRAIN)
            await error.response()(scope, receive, send)
            return
        seen = 0

        async def counting() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            return message

        await self.app(scope, counting, send)

    def _has_key(self, scope: Scope, given: str) -> bool:
        key = self.service.settings.api_key
        if key is None or scope["method"] == "OPTIONS" or scope["path"].startswith(_OPEN):
            return True
        kind, _, token = given.partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), key.encode())

    def _is_own(self, headers: dict[bytes, str]) -> bool:
        """Whether no page of another origin asks: browsers let it send forms anywhere, without leave."""
        origin, allowed = headers.get(b"origin"), self.service.settings.allowed_origins
        return origin is None or "*" in allowed or origin in allowed or origin.partition("://")[2] == headers.get(b"host")


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body has more than the {limit:,} bytes that this server takes.", "body_too_large")


async def _drain(receive: Receive, most: int) -> None:
    """Reads and forgets what a client still sends."""
    seen = 0
    while seen <= most:
        message = await receive()
        seen += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


__all__ = ["Guard"]
