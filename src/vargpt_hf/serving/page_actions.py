"""What the page does when a button is pressed, free of the page itself: streams of images, files with their settings, masks."""

import queue
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..shipped import KNOWN
from .bodies import ChatBody, ImageBody, parse
from .engine import Engine
from .errors import ApiError
from .image_files import data_url, encode, facts_of
from .jobs import Drawn, Event, Failed, Finished, Job, Partial, Text
from .preparing import Preparer
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

_LOOK_SECONDS = 0.2  # between looks at whether the stop button was pressed
_SMALL = 256  # pixels: smaller images are enlarged to be painted on
SETTINGS = (
    *("seed", "size", "negative_prompt", "guidance_type", "guidance_scale"),
    *("image_temperature", "image_top_k", "image_top_p"),
)


@dataclass
class Drawing:
    """An image that grows.

    Args:
        seed: of it.
        frames: the image after each scale so far, coarse to fine.
        file: the whole image as a PNG that says what it was drawn from; None before.
    """

    seed: int
    frames: list[Image.Image] = field(default_factory=list)
    file: str | None = None


class PageActions:
    """The engine as the page uses it.

    Args:
        model, processor, name, settings: as of the server.

    Attributes:
        folder: of the files that are shown; gone with this object.
    """

    def __init__(self, model: "VargptForConditionalGeneration", processor: "VargptProcessor", name: str, settings: ServerSettings):
        self.name = name
        self.engine = Engine(model, processor, settings)
        self.preparer = Preparer(model, processor, settings)
        self._folder = tempfile.TemporaryDirectory(prefix="vargpt-page-")
        self.folder = Path(self._folder.name)
        self._running: dict[tuple[str, int], Sequence[Job]] = {}  # by session, which may run several at once

    @property
    def prompts(self) -> tuple[str, ...]:
        """Prompts to try, of a model that comes with the package."""
        return KNOWN[self.name].prompts if self.name in KNOWN else ()

    @property
    def sizes(self) -> list[str]:
        """Sizes that the model draws, the usual one first."""
        return [self.preparer.size_of(index) for index in range(len(self.preparer.config.schedules))]

    @property
    def num_scales(self) -> int:
        """Scales of the image with the most."""
        return max(map(len, self.preparer.config.schedules))

    # ---- drawing and editing

    def draw(self, session: str, prompt: str, number: int, settings: dict[str, Any]) -> Iterator[list[Drawing]]:
        """Images of a prompt, all of them after every scale of any.

        Args:
            session: whose stop button ends it.
            settings: those of [`SETTINGS`] that are set.

        Raises:
            ApiError: for what cannot be drawn, with a sentence.
        """
        body = parse(ImageBody, {"prompt": prompt, "n": number, "stream": True, **settings})
        yield from self._stream(session, body, self.preparer.drawings(body))

    def edit(
        self, session: str, image: Image.Image | None, area: Image.Image | None, prompt: str, settings: dict[str, Any]
    ) -> Iterator[list[Drawing]]:
        """An image drawn anew where it was painted on; where nothing was painted, after reading it.

        Args:
            image: as the page shows it, perhaps enlarged by [`enlarge`].
            area: of the same size, "L", not 0 where it was painted on.
        """
        if image is None:
            raise ApiError(400, "There is no image to edit: drop one, or take one that was drawn.")
        times = enlarged_times(image, self.preparer.processor.output_image_processor.sizes)
        small = image.convert("RGB").resize((image.width // times, image.height // times), Image.Resampling.NEAREST)
        body = parse(ImageBody, {"prompt": prompt, "stream": True, **settings})
        edit = None
        if area is not None and area.getbbox() is not None:
            mask = area.point(lambda level: 255 if level else 0).resize(small.size, Image.Resampling.BOX)
            mask = mask.point(lambda level: 255 if level else 0)  # whatever the brush touched
            edit = self.preparer.edit(small, small, mask, None if body.size in (None, "auto") else body.size)
        yield from self._stream(session, body, self.preparer.drawings(body, [] if edit else [small], edit))

    def _stream(self, session: str, body: ImageBody, jobs: list[Job]) -> Iterator[list[Drawing]]:
        drawings = [Drawing(job.seed) for job in jobs]
        for index, event in self._events(session, jobs):
            if not isinstance(event, Partial | Finished):
                continue
            job, drawing = jobs[index], drawings[index]
            image = event.image if isinstance(event, Partial) else next(part for part in event.parts if isinstance(part, Image.Image))
            image = image if job.edit is None else job.edit.keep_rest(image)
            drawing.frames.append(image)
            if isinstance(event, Finished):
                drawing.file = self.save(image, {**self.facts(body, job), "prompt": body.prompt})
            yield drawings

    # ---- chat

    def chat(
        self, session: str, messages: list[dict[str, Any]], draws: bool, max_tokens: int, settings: dict[str, Any]
    ) -> Iterator[list[str | Path]]:
        """The answer to OpenAI's messages so far: texts, and files of images, in order.

        Args:
            draws: whether the answer may hold images.
        """
        modalities = ["text", "image"] if draws else ["text"]
        fields = {"messages": messages, "modalities": modalities, "stream": True, "max_tokens": max_tokens}
        body = parse(ChatBody, {**fields, **settings})
        jobs, parts = self.preparer.answers(body), []
        for _, event in self._events(session, jobs):
            if isinstance(event, Text):
                if parts and isinstance(parts[-1], str):
                    parts[-1] += event.text
                else:
                    parts.append(event.text)
                yield parts
            elif isinstance(event, Drawn):
                parts.append(Path(self.save(event.image, self.facts(body, jobs[0]))))
                yield parts

    # ---- both

    def _events(self, session: str, jobs: Sequence[Job]) -> Iterator[tuple[int, Event]]:
        """(number of the job, event) until all jobs have ended, or the session's stop button was pressed."""
        events: queue.Queue[tuple[int, Event]] = queue.Queue()
        for index, job in enumerate(jobs):
            job.emit = partial(lambda index, event: events.put((index, event)), index)
        self.engine.submit(jobs)
        self._running[session, id(jobs)] = jobs
        try:
            left = len(jobs)
            while left:
                try:
                    index, event = events.get(timeout=_LOOK_SECONDS)
                except queue.Empty:
                    if all(job.cancelled or job.ended for job in jobs):
                        return
                    continue
                if isinstance(event, Failed):
                    raise ApiError(event.status, event.message)
                left -= isinstance(event, Finished)
                yield index, event
        finally:
            self.engine.cancel(jobs)
            del self._running[session, id(jobs)]

    def stop(self, session: str) -> None:
        """Ends what a session has running: it leaves the queue, or ends at its next token or scale."""
        for (owner, _), jobs in list(self._running.items()):
            if owner == session:
                self.engine.cancel(jobs)

    def facts(self, body: ImageBody | ChatBody, job: Job) -> dict[str, Any]:
        """What an image was drawn from, as its PNG says it."""
        given = {name: getattr(body, name) for name in SETTINGS if getattr(body, name) is not None}
        return {"model": self.name, **given, "seed": job.seed, "size": self.preparer.size_of(job.schedule_id)}

    def save(self, image: Image.Image, facts: dict[str, Any]) -> str:
        """Writes a PNG that says what it was drawn from; returns its path."""
        file = self.folder / f"{uuid.uuid4().hex}.png"
        file.write_bytes(encode(image, "png", facts=facts))
        return str(file)


def restored(file: str) -> dict[str, Any]:
    """Prompt and settings that a PNG of ours was drawn from.

    Raises:
        ApiError: of a file that says nothing of that.
    """
    try:
        with Image.open(file, formats=["PNG"]) as image:
            facts = facts_of(image)
    except OSError:
        facts = {}
    kinds = {"prompt": str, "seed": int, "size": str, "negative_prompt": str, "guidance_type": str, "image_top_k": int}
    known = {name: facts[name] for name in ("prompt", *SETTINGS) if isinstance(facts.get(name), kinds.get(name, int | float))}
    if not known:
        raise ApiError(400, "This file does not say what it was drawn from: drop a PNG that was saved here.")
    return known


def enlarge(image: Image.Image) -> Image.Image:
    """A small image, its pixels as squares, so that it can be seen and painted on; others as they are."""
    times = max(1, _SMALL * 2 // max(image.size)) if max(image.size) < _SMALL else 1
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def enlarged_times(image: Image.Image, sizes: Sequence[tuple[int, int]]) -> int:
    """How many times the pixels of an image are squares: what [`enlarge`] did to one of these sizes (height, width), 1 of any other image."""
    pixels = np.asarray(image.convert("RGB"))
    for height, width in sizes:
        times = image.width // width
        if times > 1 and image.size == (times * width, times * height):
            small = pixels[::times, ::times]
            if np.array_equal(small.repeat(times, 0).repeat(times, 1), pixels):
                return times
    return 1


def message_of_user(text: str, files: Sequence[str]) -> dict[str, Any]:
    """OpenAI's message of a text and images in files."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _url_of(file)}} for file in files]
    return {"role": "user", "content": [*parts, *([{"type": "text", "text": text}] if text.strip() else [])]}


def message_of_model(parts: Sequence[str | Path]) -> dict[str, Any]:
    """OpenAI's message of an answer, its images at their places."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image_url", "image_url": {"url": _url_of(str(part))}}
        for part in parts
    ]
    return {"role": "assistant", "content": content}


def _url_of(file: str) -> str:
    """A file as a `data:` URL; of which format it is, its bytes say."""
    return data_url(Path(file).read_bytes(), "png")


__all__ = ["SETTINGS", "Drawing", "PageActions", "enlarge", "enlarged_times", "message_of_model", "message_of_user", "restored"]
