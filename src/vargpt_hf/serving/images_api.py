"""`POST /v1/images/generations` and `POST /v1/images/edits`."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from starlette.background import BackgroundTask

from .bodies import ImageBody, check_limits, parse
from .errors import CLIENT_LEFT, ApiError
from .image_files import base64_of, encode
from .jobs import Drawn, Edit, Failed, Finished, Job, Partial
from .reading import RequestImages, bytes_of, read_form, read_json
from .tickets import Ticket, failure

if TYPE_CHECKING:
    from .app import Service


async def generations(request: Request, service: "Service") -> Response:
    """Draws images of a prompt."""
    async with service.gate.enter(request):
        body = parse(ImageBody, await read_json(request))
        check_limits(body, service.settings)
        service.check_model(body.model)
        jobs = await asyncio.to_thread(service.preparer.drawings, body)
    return await _answer(request, service, body, jobs, "image_generation")


async def edits(request: Request, service: "Service") -> Response:
    """Draws images anew: inside a mask, or, without one, after a prompt that reads them."""
    async with service.gate.enter(request):
        form = await read_form(request, service.settings)
        files = ("image", "image[]", "mask", "mask[]")
        body = parse(ImageBody, {name: value for name, value in form.items() if name not in files and isinstance(value, str)}, strict=False)
        if any(not isinstance(value, str) for name, value in form.items() if name not in files):
            raise ApiError(400, "The form has files under other names than `image` and `mask`.", "unknown_parameter")
        check_limits(body, service.settings)
        service.check_model(body.model)
        images, masks = await bytes_of(form, "image"), await bytes_of(form, "mask")
        await form.close()
        jobs, edit = await asyncio.to_thread(_edit_jobs, service, body, images, masks)
    return await _answer(request, service, body, jobs, "image_edit", edit)


def _edit_jobs(service: "Service", body: ImageBody, images: list[bytes], masks: list[bytes]) -> tuple[list[Job], Edit | None]:
    """Jobs of a request to edit, and the image that they keep outside of the mask."""
    if not images:
        raise ApiError(400, "The field `image` is missing: give the image to edit as a file.", "missing_required_parameter", "image")
    if len(masks) > 1:
        raise ApiError(400, f"There are {len(masks)} masks: give one, for the first image.", "invalid_mask", "mask")
    reader = RequestImages(service.settings)
    names = ["`image`", *(f"`image[{index}]`" for index in range(1, len(images)))]
    opened = [reader.open(content, name) for content, name in zip(images, names)]
    mask = reader.open(masks[0], "`mask`") if masks else None
    decoded = [reader.decode(image, name) for image, name in zip(opened, names)]
    if mask is not None:
        reader.decode(mask, "`mask`")  # a damaged file says so here
    edit = service.preparer.edit(opened[0], decoded[0], mask, body.size)
    return service.preparer.drawings(body, decoded if edit is None else decoded[1:], edit), edit


async def _answer(request: Request, service: "Service", body: ImageBody, jobs: list[Job], kind: str, edit: Edit | None = None) -> Response:
    """The images of jobs, at once or as a stream of events."""
    ticket = Ticket(service.engine, jobs)
    whole: Callable[[Image.Image], Image.Image] = (lambda image: image) if edit is None else edit.keep_rest
    if body.stream:
        ticket.open()  # what is refused is so before the stream begins
        return StreamingResponse(
            _stream(ticket, service, body, kind, whole), media_type="text/event-stream", background=BackgroundTask(ticket.close)
        )
    async with ticket:
        ends = await ticket.finished(request)
    if ends is None:
        return Response(status_code=CLIENT_LEFT)
    drawn = [next(part for part in end.parts if isinstance(part, Image.Image)) for end in ends]
    files = await asyncio.gather(*(_file(service, body, job, whole(image)) for job, image in zip(jobs, drawn)))
    data = []
    for job, content in zip(jobs, files):
        if body.response_format == "url":
            name = service.store.put(content, body.output_format or "png")
            data.append({"url": str(request.url_for("stored_image", name=name)), "seed": job.seed})
        else:
            data.append({"b64_json": base64_of(content), "seed": job.seed})
    return JSONResponse({**_facts(service, body, jobs[0]), "created": int(time.time()), "data": data, "usage": _usage(jobs, ends)})


async def _stream(ticket: Ticket, service: "Service", body: ImageBody, kind: str, whole: Callable) -> AsyncIterator[str]:
    """Server-sent events: partial images, a scale each, then the whole one, of every job."""
    try:
        shown = [0] * len(ticket.jobs)
        async for item in ticket.events():
            if item is None:
                yield ": waiting\n\n"
                continue
            index, event = item
            job = ticket.jobs[index]
            if isinstance(event, Failed):
                raise failure(event)
            if isinstance(event, Drawn):
                continue  # comes with the end
            image = event.image if isinstance(event, Partial) else next(part for part in event.parts if isinstance(part, Image.Image))
            content = await _file(service, body, job, whole(image))
            common = {
                "b64_json": base64_of(content),
                "created_at": int(time.time()),
                **_facts(service, body, job),
                "index": index,
                "seed": job.seed,
            }
            if isinstance(event, Partial):
                fields = {**common, "partial_image_index": shown[index], "scale": event.scale}
                shown[index] += 1
                yield server_sent({"type": f"{kind}.partial_image", **fields})
            else:
                yield server_sent({"type": f"{kind}.completed", **common, "usage": _usage([job], [event])})
    except ApiError as error:
        yield server_sent({"type": "error", **error.body()})
    finally:
        ticket.close()


def server_sent(event: dict[str, Any]) -> str:
    """An event of a stream, under the name of its type."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


async def _file(service: "Service", body: ImageBody, job: Job, image: Image.Image) -> bytes:
    compression = 100 if body.output_compression is None else body.output_compression
    facts = service.facts(body, job, body.prompt)
    return await asyncio.to_thread(encode, image, body.output_format or "png", compression, facts)


def _facts(service: "Service", body: ImageBody, job: Job) -> dict[str, Any]:
    """What OpenAI's answers say of an image; there is but one quality."""
    size = service.preparer.size_of(job.schedule_id)
    return {"background": "opaque", "output_format": body.output_format or "png", "quality": "auto", "size": size}


def _usage(jobs: list[Job], ends: list[Finished]) -> dict[str, Any]:
    read, written = sum(job.prompt_tokens for job in jobs), sum(end.tokens for end in ends)
    details = {"text_tokens": read, "image_tokens": 0}
    return {"input_tokens": read, "input_tokens_details": details, "output_tokens": written, "total_tokens": read + written}


__all__ = ["edits", "generations", "server_sent"]
