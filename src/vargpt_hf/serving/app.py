"""The server: its addresses, and what stands behind them."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse

from .. import __version__
from . import chat_api, images_api
from .bodies import ChatBody, ImageBody, RequestBody
from .connections import ImpatientProtocol
from .engine import Engine
from .errors import ApiError, install_handlers
from .guard import Guard
from .image_files import ImageStore
from .jobs import Job
from .preparing import Preparer
from .reading import Gate
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

_MOST_CONNECTIONS = 1000


class Service:
    """What the addresses of one server share.

    Args:
        model: ready to generate.
        processor: of the model.
        name: by which requests may call the model: the last part of its folder or Hub id.
        settings: limits.
    """

    def __init__(self, model: "VargptForConditionalGeneration", processor: "VargptProcessor", name: str, settings: ServerSettings):
        self.name = name
        self.settings = settings
        self.engine = Engine(model, processor, settings)
        self.preparer = Preparer(model, processor, settings)
        self.store = ImageStore()
        self.gate = Gate()
        self.started = int(time.time())
        self.paths: set[str] = set()

    def check_model(self, name: str | None) -> None:
        """Raises an ApiError, 404, for another model than the one that is served."""
        if name not in (None, "", self.name):
            raise ApiError(404, f"There is no model {name[:80]!r} here; leave `model` out, or give {self.name!r}.", "model_not_found", "model")

    def card(self) -> dict[str, Any]:
        """The model as OpenAI lists it."""
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "vargpt-hf"}

    def facts(self, body: RequestBody, job: Job, prompt: str | None) -> dict[str, Any]:
        """What an image was drawn from, as its PNG says it: enough to draw it again."""
        names = ("negative_prompt", "guidance_type", "guidance_scale", "image_temperature", "image_top_k", "image_top_p")
        given = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
        size = self.preparer.size_of(job.schedule_id)
        return {"model": self.name, "seed": job.seed, "size": size, **given, **({} if prompt is None else {"prompt": prompt})}


def create_app(service: Service) -> FastAPI:
    """The ASGI application of a service; its engine runs as long as the application does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await asyncio.to_thread(service.engine.close)

    app = FastAPI(title="vargpt-hf", version=__version__, lifespan=lifespan)
    install_handlers(app)
    app.add_middleware(Guard, service=service)
    if service.settings.allowed_origins:
        app.add_middleware(CORSMiddleware, allow_origins=service.settings.allowed_origins, allow_methods=["*"], allow_headers=["*"])

    def schema(kind: type[RequestBody], media_type: str) -> dict[str, Any]:
        return {"requestBody": {"required": True, "content": {media_type: {"schema": kind.model_json_schema()}}}}

    @app.post("/v1/images/generations", openapi_extra=schema(ImageBody, "application/json"))
    async def generations(request: Request) -> Response:
        return await images_api.generations(request, service)

    @app.post("/v1/images/edits", openapi_extra=schema(ImageBody, "multipart/form-data"))
    async def edits(request: Request) -> Response:
        return await images_api.edits(request, service)

    @app.post("/v1/chat/completions", openapi_extra=schema(ChatBody, "application/json"))
    async def completions(request: Request) -> Response:
        return await chat_api.completions(request, service)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [service.card()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        service.check_model(name)
        return JSONResponse(service.card())

    @app.get("/health")
    async def health() -> JSONResponse:
        well, word = service.engine.state()
        return JSONResponse({"status": word, "waiting": service.engine.num_waiting}, 200 if well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(service.engine.metrics.text), media_type="text/plain; version=0.0.4")

    @app.get("/images/{name}", name="stored_image")
    async def stored_image(name: str) -> Response:
        content = service.store.get(name)
        if content is None:
            raise ApiError(404, "There is no such image, or no longer.", "not_found")
        return Response(content, media_type=f"image/{name.rpartition('.')[2]}", headers={"X-Content-Type-Options": "nosniff"})

    service.paths = {route.path for route in app.routes}
    return app


class _Server(uvicorn.Server):
    """uvicorn's server, which sends waiting requests away as soon as it is told to end."""

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self.engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.engine.drain()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 takes a free one.

    Raises:
        OSError: an address that is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=_MOST_CONNECTIONS)
    except OSError as error:
        raise OSError(f"Nobody can listen at {host}:{port}: {error.strerror or error}. Give another --host or --port.") from error


def server_of(service: Service, log_level: str = "info") -> uvicorn.Server:
    """uvicorn's server of a service, with the limits that its settings name.

    Args:
        log_level: of uvicorn, such as "warning".
    """
    config = uvicorn.Config(
        create_app(service),
        http=ImpatientProtocol,
        ws="none",
        log_level=log_level,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=int(service.settings.shutdown_seconds),
        server_header=False,
    )
    return _Server(config, service.engine)


def run(service: Service, listening: socket.socket, log_level: str = "info") -> None:
    """Serves until a signal ends it; what runs then is finished first, within the settings' time.

    Args:
        listening: from [`listen`].
        log_level: of uvicorn, such as "warning".
    """
    with listening:
        server_of(service, log_level).run(sockets=[listening])


__all__ = ["Service", "create_app", "listen", "run", "server_of"]
