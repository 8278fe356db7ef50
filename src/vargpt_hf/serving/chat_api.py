"""`POST /v1/chat/completions`: texts and images in, texts and images out, in order."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from starlette.background import BackgroundTask

from .bodies import ChatBody, check_limits, parse
from .chats import image_entry, message_of
from .errors import CLIENT_LEFT, ApiError
from .image_files import data_url, encode
from .jobs import Drawn, Failed, Finished, Job, Text
from .reading import read_json
from .tickets import Ticket, failure

if TYPE_CHECKING:
    from .app import Service


async def completions(request: Request, service: "Service") -> Response:
    """Answers a chat."""
    async with service.gate.enter(request):
        body = parse(ChatBody, await read_json(request))
        check_limits(body, service.settings)
        service.check_model(body.model)
        jobs = await asyncio.to_thread(service.preparer.answers, body)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": service.name}
    ticket = Ticket(service.engine, jobs)
    if body.stream:
        ticket.open()  # what is refused is so before the stream begins
        return StreamingResponse(_stream(ticket, service, body, head), media_type="text/event-stream", background=BackgroundTask(ticket.close))
    async with ticket:
        ends = await ticket.finished(request)
    if ends is None:
        return Response(status_code=CLIENT_LEFT)
    choices = []
    for index, (job, end) in enumerate(zip(jobs, ends)):
        urls = [await _url(service, body, job, part) for part in end.parts if isinstance(part, Image.Image)]
        choices.append({"index": index, "message": message_of(end.parts, urls), "finish_reason": end.reason, "logprobs": None})
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": _usage(jobs, ends)})


async def _stream(ticket: Ticket, service: "Service", body: ChatBody, head: dict[str, Any]) -> AsyncIterator[str]:
    """Server-sent events: pieces of text and whole images, in order, of every answer."""

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    try:
        ends, images = [], [0] * len(ticket.jobs)
        for index in range(len(ticket.jobs)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for item in ticket.events():
            if item is None:
                yield ": waiting\n\n"
                continue
            index, event = item
            if isinstance(event, Failed):
                raise failure(event)
            if isinstance(event, Text):
                yield chunk(index, {"content": event.text})
            elif isinstance(event, Drawn):
                url = await _url(service, body, ticket.jobs[index], event.image)
                yield chunk(index, {"images": [image_entry(url, images[index])]})
                images[index] += 1
            elif isinstance(event, Finished):
                ends.append(event)
                yield chunk(index, {}, event.reason)
        if (body.stream_options or {}).get("include_usage"):
            usage = {**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(ticket.jobs, ends)}
            yield f"data: {json.dumps(usage)}\n\n"
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
    finally:
        ticket.close()


async def _url(service: "Service", body: ChatBody, job: Job, image: Image.Image) -> str:
    """A drawn image as a `data:` URL."""
    file_format = body.output_format or "png"
    compression = 100 if body.output_compression is None else body.output_compression
    facts = service.facts(body, job, None)
    return data_url(await asyncio.to_thread(encode, image, file_format, compression, facts), file_format)


def _usage(jobs: list[Job], ends: list[Finished]) -> dict[str, int]:
    read, written = sum(job.prompt_tokens for job in jobs), sum(end.tokens for end in ends)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


__all__ = ["completions"]
