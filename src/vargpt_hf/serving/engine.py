"""The engine: a queue of jobs, and one thread that answers them in batches."""

import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .answering import Abandoned, answer_batch
from .errors import ApiError
from .jobs import Failed, Job
from .metrics import Metrics
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

_LOG = logging.getLogger("vargpt_hf.serving")
# What turning codes into a pixel takes: about four feature maps of 160 channels in float32, as VAR's decoder has them.
_BYTES_PER_PIXEL = 4 * 160 * 4
_FALLBACK_MEMORY = 4 * 2**30
_MEMORY = Path("/proc/meminfo")
_FAULTS_UNTIL_ILL = 3


class Engine:
    """Answers jobs, those of one key together, in the order of their arrival.

    Args:
        model: ready to generate.
        processor: of the model.
        settings: limits.

    Attributes:
        metrics: numbers about what was done.
    """

    def __init__(self, model: "VargptForConditionalGeneration", processor: "VargptProcessor", settings: ServerSettings):
        self.model = model
        self.processor = processor
        self.settings = settings
        self.memory_bytes = settings.memory_bytes or free_memory(model.device) // 2
        # Rows of a backbone that cannot wait are decoded one after the other anyway, and then nobody sees which one writes.
        self.max_batch = settings.max_batch if model.model.backbone.can_wait else 1
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._draining = self._closed = False
        self._faults = 0
        self._seconds = 1.0  # of a batch, a moving average
        self._thread: threading.Thread | None = None
        self.metrics = Metrics(lambda: len(self._waiting))

    # ---- from any thread

    def start(self) -> None:
        """Starts the thread that answers."""
        self._thread = threading.Thread(target=self._run, name="vargpt-engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Lets jobs wait, all of them or none.

        Raises:
            ApiError: 429 where too many wait, 503 during a shutdown, 413 for a job that does not fit into memory by itself.
        """
        for job in jobs:
            if (needed := self._bytes([job])) > self.memory_bytes:
                raise ApiError(
                    413,
                    f"This request would take about {needed / 2**20:,.0f} MiB of memory, more than the {self.memory_bytes / 2**20:,.0f} MiB "
                    "that there are: ask for fewer tokens, or a smaller image.",
                )
        with self._changed:
            if self._draining:
                raise ApiError(503, "The server is shutting down.", "shutting_down", retry_after=10)
            held = sum(job.pixels for job in [*self._waiting, *jobs]) * 3
            if len(self._waiting) + len(jobs) > self.settings.max_waiting or held > self.settings.max_waiting_bytes:
                batches = 1 + len(self._waiting) / self.max_batch
                raise ApiError(
                    429, "Too many requests wait already: try again later.", "queue_full", retry_after=min(60, batches * self._seconds)
                )
            self._waiting += jobs
            self._changed.notify_all()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Gives up jobs that have not ended: those that wait leave at once, those that run leave after their next step."""
        with self._changed:
            for job in jobs:
                if not job.ended and not job.cancelled:
                    job.cancelled = True
                    self.metrics.abandoned.inc()
                if job in self._waiting:
                    self._waiting.remove(job)

    def drain(self) -> None:
        """Takes no more jobs, and sends those away that wait; what runs is finished."""
        with self._changed:
            self._draining, waiting, self._waiting = True, self._waiting, []
            self._changed.notify_all()
        for job in waiting:
            job.end(Failed(503, "The server is shutting down."))

    def close(self) -> None:
        """Drains, and waits for what runs; jobs that still run after that are given up."""
        self.drain()
        with self._changed:
            self._closed = True
            for job in self._running:
                job.cancelled = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def state(self) -> tuple[bool, str]:
        """Whether new jobs are taken and answered, and a word that says why not."""
        if self._draining:
            return False, "shutting down"
        if self._faults >= _FAULTS_UNTIL_ILL or self._thread is None or not self._thread.is_alive():
            return False, "failing"
        return True, "ok"

    @property
    def num_waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    # ---- in the engine's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._draining)
                if self._draining and not self._waiting:
                    return
                batch = self._running = self._next_batch()
            if batch:
                start = time.monotonic()
                self.metrics.running.set(len(batch))
                self._answer(batch)
                self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - start)
                self.metrics.batch_rows.observe(len(batch))
                self.metrics.batch_seconds.observe(time.monotonic() - start)
                self.metrics.running.set(0)
                with self._changed:
                    self._running = []
            del batch  # with its images

    def _next_batch(self) -> list[Job]:
        """Takes the oldest job out of the queue, and with it those that can be answered together with it."""
        batch: list[Job] = []
        for job in list(self._waiting):
            if job.is_late:
                self._waiting.remove(job)
                job.end(Failed(503, f"The request has waited longer than {self.settings.max_seconds:g} s."))
            elif not batch or (len(batch) < self.max_batch and job.key == batch[0].key and self._bytes([*batch, job]) <= self.memory_bytes):
                batch.append(job)
                self._waiting.remove(job)
        return batch

    def _bytes(self, jobs: Sequence[Job]) -> int:
        """About what a batch takes beside the model: keys and values of its tokens, and pixels."""
        config, text = self.model.config, self.model.config.text_config
        schedule = config.schedules[jobs[0].schedule_id]
        mode, settings = jobs[0].mode, jobs[0].settings
        images = {"text": 0, "image": 1}.get(mode, settings.get("max_output_images", 1))
        tokens = max(job.prompt_tokens for job in jobs) + max(job.max_tokens for job in jobs) + images * schedule.num_positions
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        rows = len(jobs) * (2 if settings.get("output_image_guidance_type") == "prompt" else 1)
        cache = rows * tokens * 2 * text.num_hidden_layers * width * self.model.dtype.itemsize
        height, width = self.processor.output_image_processor.sizes[jobs[0].schedule_id]
        return cache + (len(jobs) * height * width * _BYTES_PER_PIXEL if images else 0)

    def _answer(self, batch: list[Job]) -> None:
        """Answers a batch; where it cannot be answered as a whole, in halves, so that one bad job spoils no other."""
        batch = [job for job in batch if not job.cancelled]
        if not batch:
            return
        split = False
        try:
            images, tokens = answer_batch(self.model, self.processor, batch)
            self.metrics.images.inc(images)
            self.metrics.tokens.inc(tokens)
            self._faults = 0
        except Abandoned:
            pass
        except Exception as error:  # noqa: BLE001 the thread must go on, whatever one batch brings
            split = len(batch) > 1
            if not split:
                self._fail(batch[0], error)
        if split:  # only now that the error is gone, and with it the memory that the failed attempt held
            half = len(batch) // 2
            self._answer(batch[:half])
            self._answer(batch[half:])
            return
        for job in batch:
            if not job.ended and job.cancelled:
                job.ended = True
            elif not job.ended:
                job.end(Failed(504, f"The answer took longer than {self.settings.max_seconds:g} s."))

    def _fail(self, job: Job, error: Exception) -> None:
        if isinstance(error, ValueError | TypeError):
            job.end(Failed(400, str(error)))
            return
        self._faults += 1
        _LOG.error("A batch failed", exc_info=error)
        job.end(Failed(500, "The server has a fault; its log says which."))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, as far as it says so."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and _MEMORY.is_file():  # Linux: what is cached can be had, too
        kibibytes = re.search(r"MemAvailable:\s*(\d+) kB", _MEMORY.read_text())
        if kibibytes:
            return 1024 * int(kibibytes[1])
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * _FALLBACK_MEMORY


__all__ = ["Engine", "free_memory"]
