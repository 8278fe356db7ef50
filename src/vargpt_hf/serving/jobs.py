"""Jobs: what the engine is asked, one answer each, and the events by which it replies."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Text:
    """Words that were added to an answer."""

    text: str


@dataclass(frozen=True)
class Partial:
    """An image after one of its scales, before the last."""

    image: Image.Image
    scale: int


@dataclass(frozen=True)
class Drawn:
    """A whole image of an answer."""

    image: Image.Image


@dataclass(frozen=True)
class Finished:
    """The end of an answer.

    Args:
        parts: texts and images in order.
        reason: "stop", or "length" where a limit cut it.
        tokens: generated, the positions of images included.
    """

    parts: list[str | Image.Image]
    reason: str
    tokens: int


@dataclass(frozen=True)
class Failed:
    """The end of an answer that could not be given: a status of HTTP and a sentence."""

    status: int
    message: str


Event = Text | Partial | Drawn | Finished | Failed


@dataclass(frozen=True)
class Edit:
    """An image to draw again in part.

    Args:
        image: as it is, in RGB, of the size of the job's schedule.
        mask: of the same size, "L", 255 where it is drawn anew, else 0.
        coverage: share of a position's cell that must be masked for the position to be drawn anew.
    """

    image: Image.Image
    mask: Image.Image
    coverage: float = 0.5

    def keep_rest(self, drawn: Image.Image) -> Image.Image:
        """A drawn image inside the mask, and the image as it was, to the last bit, outside."""
        return Image.composite(drawn, self.image, self.mask)


@dataclass(eq=False)
class Job:
    """One answer to be given.

    Args:
        chat: messages, their images as PIL.
        mode: `generation_mode`.
        emit: takes the events, in the engine's thread; must not wait.
        settings: of `generate`, which jobs of one batch share.
        seed: of everything random in this answer.
        schedule_id: scale schedule of its images.
        max_tokens: most tokens; an image counts as two.
        stop: texts that end the answer, and are no part of it.
        scales: of which partial images are wanted.
        streams: whether texts and images are wanted as they come.
        edit: an image to draw again in part.
        prompt_tokens: of the prompt.
        pixels: of all images that the job holds.
        deadline: `time.monotonic()` at which nobody waits any more.
    """

    chat: list[dict[str, Any]]
    mode: str
    emit: Callable[[Event], None] = lambda event: None
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    schedule_id: int = 0
    max_tokens: int = 2
    stop: tuple[str, ...] = ()
    scales: frozenset[int] = frozenset()
    streams: bool = False
    edit: Edit | None = None
    prompt_tokens: int = 0
    pixels: int = 0
    deadline: float = float("inf")
    cancelled: bool = False
    ended: bool = False
    told: int = 0  # characters and images that were already given out, should the batch be run anew
    shown: int = 0

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.deadline

    @property
    def is_unwanted(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.cancelled or self.is_late

    @property
    def key(self) -> Hashable:
        """Equal for jobs that can be answered in one batch."""
        kinds = {part["type"] for message in self.chat if isinstance(message["content"], list) for part in message["content"]}
        settings = tuple(sorted((name, tuple(value) if isinstance(value, list) else value) for name, value in self.settings.items()))
        coverage = None if self.edit is None else self.edit.coverage
        return self.mode, settings, self.schedule_id, coverage, "image" in kinds, "output_image" in kinds

    def end(self, event: Finished | Failed) -> None:
        """Gives out the last event, once."""
        if not self.ended:
            self.ended = True
            self.emit(event)


__all__ = ["Drawn", "Edit", "Event", "Failed", "Finished", "Job", "Partial", "Text"]
