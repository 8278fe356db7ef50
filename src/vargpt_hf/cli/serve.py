"""`vargpt serve`: OpenAI's API for a VARGPT, with drawings in it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..shipped import DEFAULT_NAME
from .options import Device, DType, Model, load


def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine's own need a key.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What requests call the model; the last part of --model by default.")] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch images from http(s) addresses in requests.")] = False,
    allow_origin: Annotated[list[str] | None, typer.Option(help="Origin whose pages may ask this server (CORS); may be given again.")] = None,
    max_body_mib: Annotated[float, typer.Option(help="Largest body of a request, in MiB.")] = 32,
    max_prompt_chars: Annotated[int, typer.Option(help="Most characters of a request's texts.")] = 100_000,
    max_images: Annotated[int, typer.Option(help="Most images that a request brings.")] = 16,
    max_megapixels: Annotated[float, typer.Option(help="Most pixels, in millions, of a request's images together.")] = 32,
    max_drawings: Annotated[int, typer.Option(help="Most images or answers that a request asks for (n).")] = 8,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 1024,
    max_seconds: Annotated[float, typer.Option(help="Longest time of a request, waiting included.")] = 300,
    max_waiting: Annotated[int, typer.Option(help="Answers that may wait; further requests get 429.")] = 64,
    max_batch: Annotated[int, typer.Option(help="Answers that are computed together.")] = 16,
    memory_gib: Annotated[float | None, typer.Option(help="Memory of a batch, in GiB; half of what is free by default.")] = None,
    shutdown_seconds: Annotated[float, typer.Option(help="How long the end waits for what runs.")] = 60,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Serve a VARGPT by OpenAI's API: chats with images both ways, drawings that show every scale, edits inside a mask.

    Requests must bring the key that the environment variable VARGPT_API_KEY holds; without one everybody on this machine may ask.

    \b
    Examples:
      vargpt serve --port 8000
      curl localhost:8000/v1/images/generations -H "Content-Type: application/json" -d '{"prompt": "a red scooter"}'
      VARGPT_API_KEY=secret vargpt serve --host 0.0.0.0 --model ./my-vargpt
    """
    try:
        from ..serving.settings import KEY_VARIABLE, MIB, ServerSettings
    except ImportError as error:
        raise _missing(error) from error
    settings = ServerSettings(
        host=host,
        port=port,
        api_key=os.environ.get(KEY_VARIABLE),
        allow_urls=allow_urls,
        allowed_origins=tuple(allow_origin or ()),
        max_body_bytes=int(max_body_mib * MIB),
        max_prompt_chars=max_prompt_chars,
        max_images=max_images,
        max_pixels=int(max_megapixels * 1e6),
        max_drawings=max_drawings,
        max_tokens=max_tokens,
        max_seconds=max_seconds,
        max_waiting=max_waiting,
        max_batch=max_batch,
        memory_bytes=None if memory_gib is None else int(memory_gib * 1024 * MIB),
        shutdown_seconds=shutdown_seconds,
    )
    try:
        from ..hardware import share_freed_memory
        from ..serving.app import Service, listen, run
    except ImportError as error:
        raise _missing(error) from error
    listening = listen(host, port)
    share_freed_memory()
    vargpt, processor = load(model, device, dtype)
    service = Service(vargpt, processor, name or short_name(model), settings)
    typer.echo(f"Serving {service.name} at http://{host}:{listening.getsockname()[1]}/v1")
    run(service, listening, "warning")


def short_name(model: str | None) -> str:
    """What a model is called: the last part of its folder or Hub id."""
    return DEFAULT_NAME if model is None else Path(model).resolve().name if Path(model).is_dir() else model.rpartition("/")[2]


def _missing(error: ImportError) -> ValueError:
    return ValueError(f'Serving needs more packages ({error}): pip install "vargpt-hf[serve]".')
