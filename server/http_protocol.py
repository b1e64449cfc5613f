"""Uvicorn's HTTP/1.1 with bounds on what a peer may send beside bodies, and on how long it may take for it.

httptools reads it in C, which halves what a request costs the event loop (measured), and sets no bounds of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, ClassVar, Final, cast
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_TIMEOUT_S: Final = 15.0
"""From the connection, or the first byte of a request, to the end of its head (slow-loris, row G02). As long what is
left of a body may take when its request is answered already, and nobody reads it."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections that send endless heads or dawdle over them, and lets no trailer pass."""

    max_head: ClassVar[int] = 64 * 1024
    """Bytes of a request's head; what frames the chunks of a body may be as much more as the body itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head = 0
        """Bytes of the names and values of the request's headers."""
        self._framing = 0
        """Bytes of the request that are no body."""
        self._body = 0
        self._asked: deque[RequestResponseCycle] = deque()
        """Requests that were not answered when the last one came, in their order."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._framing += len(data)
        super().data_received(data)
        if self._framing > self.max_head + self._body and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer is gone, for all that it asked: uvicorn tells its last request only."""
        self._unwatch()
        super().connection_lost(exc)
        for cycle in self._asked:
            cycle.disconnected = True
            cycle.message_event.set()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, without the blanks around its value, which are none of it (RFC 9110, section 5.5).

        One that comes after the body is dropped, for the request was judged without it.
        """
        if not self._in_head:
            return
        self._head += len(name) + len(value)
        if self._head > self.max_head:
            # The parser ends, and uvicorn answers as to any other request that is none.
            raise ValueError("the head is too large")
        super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        """The head is there. Its target is passed on as it is written, whose host and fragment uvicorn drops."""
        self._in_head = False
        target, _, query = self.url.partition(b"?")
        path = unquote(target.decode("ascii"))
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            while self._asked and self._asked[0].response_complete:
                self._asked.popleft()
            self._asked.append(self.cycle)
        self.scope["path"], self.scope["raw_path"], self.scope["query_string"] = path, target, query

    def on_body(self, body: bytes) -> None:
        """A part of the body is there."""
        self._body += len(body)
        self._framing -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        self._in_head, self._head, self._framing, self._body = True, 0, 0, 0
        super().on_message_complete()

    def _watch(self) -> None:
        """Let the time run while only the peer has something to do, except on a connection that is kept alive."""
        if self.transport.get_protocol() is not self or not self._awaits_peer:
            self._unwatch()
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._peer_late)

    @property
    def _awaits_peer(self) -> bool:
        # uvicorn declares the attribute without the None that it holds until the first request.
        cycle = cast("Any", self.cycle)
        return cycle is None or bool(cycle.response_complete)

    def _unwatch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _peer_late(self) -> None:
        self._head_timer = None
        if self._awaits_peer and not self.transport.is_closing():
            self.transport.close()
