"""Uvicorn's HTTP protocol with a bound on how long a request's head may take."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S: Final = 15.0
"""From the connection, or the first byte of a request, to the end of its head."""

ABORT: Final = "abort"
"""In the state of each request: a function that cuts its connection off without waiting for what is not yet read."""


class TimelyProtocol(H11Protocol):
    """Closes connections that never finish the head of a request, which Uvicorn keeps for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Also for the protocol of a WebSocket that takes the connection over.
        self.app_state = {**self.app_state, ABORT: self._abort}
        self._head_timer: asyncio.TimerHandle | None = None

    def _abort(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.transport.get_protocol() is not self or self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_late)

    def _unwatch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
