"""The side of asyncio: a request's jobs, their events, and a client that may go away."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial

from fastapi import Request

from .engine import Engine
from .errors import ApiError
from .jobs import Event, Failed, Finished, Job

_QUIET_SECONDS = 10.0  # after which a stream says that it is still there


class Ticket:
    """Jobs that wait and run while this context is open; those that have not ended when it closes are given up.

    Args:
        engine: what answers.
        jobs: of one request.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job]):
        self.engine = engine
        self.jobs = jobs
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        for index, job in enumerate(jobs):
            job.emit = partial(self._emit, index)

    def _emit(self, index: int, event: Event) -> None:
        """Called in the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    def open(self) -> None:
        """Lets the jobs wait.

        Raises:
            ApiError: as `Engine.submit`.
        """
        self.engine.submit(self.jobs)

    def close(self) -> None:
        """Gives up those that have not ended; may be called again."""
        self.engine.cancel(self.jobs)

    async def __aenter__(self) -> "Ticket":
        self.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    async def events(self) -> AsyncIterator[tuple[int, Event] | None]:
        """(number of the job, event) until all have ended; None now and then where nothing happens.

        Raises:
            ApiError: 504 where the time is over.
        """
        left = len(self.jobs)
        while left:
            seconds = self.jobs[0].deadline - time.monotonic()
            if seconds <= 0:
                raise ApiError(504, f"The request took longer than {self.engine.settings.max_seconds:g} s.", "timeout")
            try:
                index, event = await asyncio.wait_for(self._events.get(), min(seconds, _QUIET_SECONDS))
            except asyncio.TimeoutError:
                yield None
                continue
            left -= isinstance(event, Finished | Failed)
            yield index, event

    async def finished(self, request: Request) -> list[Finished] | None:
        """How all jobs ended; None where the client went away before.

        Raises:
            ApiError: for a job that failed.
        """
        collecting = asyncio.ensure_future(self._collect())
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return collecting.result() if collecting.done() else None
        finally:
            for task in (collecting, leaving):
                task.cancel()

    async def _collect(self) -> list[Finished]:
        ends: list[Finished | None] = [None] * len(self.jobs)
        async for item in self.events():
            if item is not None and isinstance(item[1], Failed):
                raise failure(item[1])
            if item is not None and isinstance(item[1], Finished):
                ends[item[0]] = item[1]
        return ends


def failure(event: Failed) -> ApiError:
    """The error of a job that failed."""
    return ApiError(event.status, event.message, retry_after=10 if event.status == 503 else None)


async def _left(request: Request) -> None:
    """Waits until the client has gone away; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


__all__ = ["Ticket", "failure"]
