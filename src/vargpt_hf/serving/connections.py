"""Connections that stand open for nothing are closed: those whose request never comes, and those whose answer nobody reads."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 30.0  # seconds


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits forever for the head of a request and for a client that reads.

    What is slower than this clock is closed; the body of a request has a clock of its own (`reading.py`).
    """

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """The clock of the first request starts."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """It stops once a request's head is whole, and starts anew with the next one."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The end of an answer, which the client must read in time, too."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        self._unread = _stopped(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        """No clock outlives its connection."""
        self._late, self._unread = _stopped(self._late), _stopped(self._unread)
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._late = _stopped(self._late)
        elif self._late is None:
            self._late = self.loop.call_later(PATIENCE, self.transport.abort)


def _stopped(clock: asyncio.TimerHandle | None) -> None:
    if clock is not None:
        clock.cancel()


__all__ = ["ImpatientProtocol"]
