"""Errors as OpenAI's API shapes them, so that its clients raise the right exception."""

import logging
import math

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_LOG = logging.getLogger("vargpt_hf.serving")
CLIENT_LEFT = 499  # as nginx says it in its log; no client is told
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error", 504: "server_error"}


class ApiError(Exception):
    """What a client is told.

    Args:
        status: of HTTP.
        message: a sentence.
        code: OpenAI's short name of the cause.
        param: field of the request that is meant.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None, retry_after: float | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict:
        """The JSON object that a client gets, whatever of its request the message repeats."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": _encodable(self.message), "type": kind, "param": _encodable(self.param), "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def _encodable(text: str | None) -> str | None:
    """A text without the halves of characters that JSON may bring in, and UTF-8 cannot take out."""
    return None if text is None else text.encode(errors="replace").decode()


def install_handlers(app: FastAPI) -> None:
    """Lets every error of an app leave it in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def by_http(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        causes = {404: f"There is nothing at {where}.", 405: f"{where} is not a way to ask this server."}
        response = ApiError(error.status_code, causes.get(error.status_code, str(error.detail))).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return ApiError(500, "The server has a fault; its log says which.").response()


__all__ = ["CLIENT_LEFT", "ApiError", "install_handlers"]
