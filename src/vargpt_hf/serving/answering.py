"""From jobs to events: one batch through `generate`, its texts and images given out as they come."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from tokenizers.decoders import DecodeStream
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..inference.drawing import answer
from ..inference.inpainting import keep_outside
from ..modeling.drawing_plan_vargpt import VargptImageStreamer
from .jobs import Drawn, Finished, Job, Partial, Text

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor


class Abandoned(Exception):
    """Nobody waits for any row of the batch."""


class _Row:
    """What one job's row has said so far.

    Attributes:
        parts: texts, and None for every image.
        stopped: whether one of the job's stop texts has come.
        count, last: tokens that the model wrote, and the last of them.
    """

    def __init__(self, job: Job, processor: "VargptProcessor"):
        self.job = job
        self.parts: list[str | None] = []
        self.stopped = False
        self.count = 0
        self.last: int | None = None
        self.images = 0
        self._tokenizer = processor.tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._start = processor.output_image_start_token_id
        self._silent = {processor.output_image_end_token_id, processor.output_image_token_id}
        self._held = ""  # what may be the beginning of a stop text
        self._said = 0

    def take(self, token: int) -> None:
        """Takes the next token that the model wrote."""
        self.count, self.last = self.count + 1, token
        if self.stopped or token in self._silent:
            return
        if token == self._start:
            self.flush()
            self.parts.append(None)
            return
        text = self._stream.step(self._tokenizer, token)
        if text and not self.parts and not self._held:
            text = text.removeprefix(" ")  # the chat template puts it back
        self._held += text or ""
        ends = [place for place in map(self._held.find, self.job.stop) if place >= 0]
        if ends:
            self._held, self.stopped = self._held[: min(ends)], True
        keep = 0 if self.stopped else _overlap(self._held, self.job.stop)
        self._say(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]

    def flush(self) -> None:
        """Gives out what was held back."""
        self._say(self._held)
        self._held = ""

    def _say(self, text: str) -> None:
        if not text:
            return
        if self.parts and self.parts[-1] is not None:
            self.parts[-1] += text
        else:
            self.parts.append(text)
        new = text[max(0, self.job.told - self._said) :]
        self._said += len(text)
        if new and self.job.streams:
            self.job.told = self._said
            self.job.emit(Text(new))

    def show(self, image: Image.Image) -> None:
        """Takes the next whole image."""
        self.images += 1
        if self.images > self.job.shown and self.job.streams:
            self.job.shown = self.images
            self.job.emit(Drawn(image))


def _overlap(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of a stop text."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    return next((count for count in range(longest, 0, -1) if any(stop.startswith(text[-count:]) for stop in stops)), 0)


class _Words(BaseStreamer):
    """Hands each row its tokens."""

    def __init__(self, rows: Sequence[_Row], padding: int):
        self.rows = rows
        self.padding = padding
        self.prompt_length = -1

    def put(self, value: torch.LongTensor) -> None:
        """Takes the prompts (B, P) first, then the tokens (B,) of each step, padding where a row writes none."""
        if self.prompt_length < 0:
            self.prompt_length = value.shape[1]
            return
        _unless_abandoned(self.rows)
        for row, token in zip(self.rows, value.tolist()):
            if token != self.padding and not row.job.is_unwanted:
                row.take(token)

    def end(self) -> None:
        """Nothing is held back here."""


class _Room(LogitsProcessor):
    """Rules image-start out in rows whose own limit has no room for the two tokens of an image; `generate` knows the batch's largest alone."""

    def __init__(self, words: _Words, start: int):
        self.words = words
        self.start = start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, vocabulary) of what follows prompts and generated tokens (B, P + length)."""
        length = input_ids.shape[1] - self.words.prompt_length
        full = torch.tensor([length + 2 > row.job.max_tokens for row in self.words.rows], device=scores.device)
        scores = scores.clone()
        scores[full, self.start] = -torch.inf
        return scores


class _Ends(StoppingCriteria):
    """Ends each row at its own limits."""

    def __init__(self, words: _Words):
        self.words = words

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs) -> torch.BoolTensor:
        """Rows (B,) that end, of prompts and generated tokens (B, P + length)."""
        length = input_ids.shape[1] - self.words.prompt_length
        ends = [length >= row.job.max_tokens or row.stopped or row.job.is_unwanted for row in self.words.rows]
        return torch.tensor(ends, device=input_ids.device)


class _Scales(VargptImageStreamer):
    """Hands each row its images after the scales that its job asks for."""

    def __init__(self, rows: Sequence[_Row], processor: "VargptProcessor", num_scales: int, forced: bool):
        self.rows = rows
        self.processor = processor
        self.num_scales = num_scales
        self.forced = forced
        self.coming = 0

    def _is_wanted(self, row: _Row, scale: int) -> bool:
        """Whether a row needs the image after a scale; the last one of a forced image comes out at the end anyway."""
        last = scale == self.num_scales - 1
        return not row.job.is_unwanted and (row.job.streams and not self.forced if last else scale in row.job.scales)

    @property
    def wants_pixels(self) -> bool:
        """Whether the coming scale's image is wanted by any row."""
        return any(self._is_wanted(row, self.coming) for row in self.rows)

    def put(self, images: torch.Tensor | None, rows: torch.LongTensor, scale_index: int) -> None:
        """Takes the images (N, channels, height, width) in [-1, 1] of some rows after one scale."""
        _unless_abandoned(self.rows)
        self.coming = (scale_index + 1) % self.num_scales
        if images is None:
            return
        for index, number in enumerate(rows.tolist()):
            row = self.rows[number]
            if self._is_wanted(row, scale_index):
                (image,) = self.processor.output_image_processor.post_process(images[index : index + 1])
                if scale_index == self.num_scales - 1:
                    row.show(image)
                else:
                    row.job.emit(Partial(image, scale_index))

    def end(self) -> None:
        """Nothing is held back here."""


def _unless_abandoned(rows: Sequence[_Row]) -> None:
    if all(row.job.is_unwanted for row in rows):
        raise Abandoned


def answer_batch(model: "VargptForConditionalGeneration", processor: "VargptProcessor", jobs: Sequence[Job]) -> tuple[int, int]:
    """Answers jobs of one key; every event of theirs is given out, but [`Finished`] for jobs that nobody wants any more.

    Returns:
        Images that were drawn, and tokens that were generated, the images' positions included.

    Raises:
        Abandoned: nobody wants any of them any more.
        TypeError, ValueError: as `inference.drawing.answer`.
    """
    first, rows = jobs[0], [_Row(job, processor) for job in jobs]
    settings = dict(first.settings)
    settings["output_image_size"] = processor.output_image_processor.sizes[first.schedule_id]
    if first.edit is not None:
        images, masks = [job.edit.image for job in jobs], [job.edit.mask for job in jobs]
        settings.update(keep_outside(model, processor, images, masks, first.edit.coverage))
    ends = model.generation_config.eos_token_id
    ends = list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]
    padding = model.generation_config.pad_token_id
    words = _Words(rows, int(padding) if padding is not None else ends[0] if ends else 0)
    drawn = answer(
        model,
        processor,
        [job.chat for job in jobs],
        first.mode,
        seeds=[job.seed for job in jobs],
        max_new_tokens=max(job.max_tokens for job in jobs),
        streamer=words,
        logits_processor=LogitsProcessorList([_Room(words, processor.output_image_start_token_id)]),
        stopping_criteria=StoppingCriteriaList([_Ends(words)]),
        output_image_streamer=_Scales(rows, processor, len(model.config.schedules[first.schedule_id]), first.mode == "image"),
        **settings,
    )
    images = [[] for _ in rows]
    for row, image in zip(drawn.output.output_image_rows.tolist(), drawn.images):
        images[row].append(image)
    positions = model.config.schedules[first.schedule_id].num_positions
    for row, of_row in zip(rows, images):
        if row.job.is_unwanted:
            continue
        row.flush()
        for image in of_row[row.images :]:
            row.show(image)
        in_order = iter(of_row)
        parts = [next(in_order) if part is None else part for part in row.parts]
        # Where padding is the end token, too, an end is not seen, but then the row has fewer tokens than it might.
        by_itself = row.last in ends if words.padding not in ends else row.count < row.job.max_tokens
        reason = "stop" if row.stopped or first.mode == "image" or by_itself else "length"
        row.job.end(Finished(parts, reason, row.count + len(of_row) * positions))
    return len(drawn.images), sum(row.count for row in rows) + len(drawn.images) * positions


__all__ = ["Abandoned", "answer_batch"]
