"""Uvicorn's HTTP/1.1 with bounds on what a peer may send beside bodies, and on how long it may take for it.

httptools reads it in C, which halves what a request costs the event loop (measured), and sets no bounds of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_TIMEOUT_S: Final = 15.0
"""From the connection, or the first byte of a request, to the end of its head (slow-loris, row G02). As long what is
left of a body may take when its request is answered already, and nobody reads it."""


@dataclass(frozen=True)
class Offer:
    """The head of a request that offers to change to a protocol that is not spoken here."""

    line: bytes
    headers: list[tuple[bytes, bytes]]

    def declined(self) -> bytes:
        """The head without the offer: the same request, as if it had not been made (RFC 9110, section 7.8)."""
        lines = [self.line]
        for name, value in self.headers:
            kept = value
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                kept = b", ".join(option for option in options if option.lower() != b"upgrade")
            if name != b"upgrade" and kept:
                lines.append(name + b": " + kept)
        return b"\r\n".join(lines) + b"\r\n\r\n"


class Parser:
    """httptools' parser of requests, which by itself takes a request that offers another protocol for one without a
    body, and what follows, the body, for the other protocol, or for the next request.

    Args:
        protocol: is told of what is parsed.
    """

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol = protocol
        self._parser = self._anew()

    def feed_data(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            httptools.HttpParserError: they are no HTTP.
            httptools.HttpParserUpgrade: the request changes to a protocol that is spoken here.
        """
        left = memoryview(data)
        while True:
            try:
                self._parser.feed_data(left)
            except httptools.HttpParserUpgrade as upgrade:
                offer = self._protocol.offer
                if offer is None:
                    raise
                left = left[upgrade.args[0] :]
            else:
                return
            self._parser = self._anew()
            self._parser.feed_data(offer.declined())

    def _anew(self) -> Any:
        parser = httptools.HttpRequestParser(self._protocol)
        # As uvicorn does: requests that were sent ahead of an answer may follow one that closes the connection.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections that send endless heads or dawdle over them, lets no trailer pass, and declines protocols."""

    max_head: ClassVar[int] = 64 * 1024
    """Bytes of a request's head; what frames the chunks of a body may be as much more as the body itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = cast("Any", Parser(self))
        self.offer: Offer | None = None
        """Of the request whose head was read last, until it was read again without it."""
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
        if self.parser.should_upgrade() and not self._changes_protocol:
            version = self.parser.get_http_version().encode()
            line = self.parser.get_method() + b" " + self.url + b" HTTP/" + version
            self.offer, self._head = Offer(line, list(self.headers)), 0
            return
        if self.offer is not None:
            self.headers[:] = self.offer.headers
            self.offer = None
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
        if self.offer is not None:
            return
        self._in_head, self._head, self._framing, self._body = True, 0, 0, 0
        super().on_message_complete()

    @property
    def _changes_protocol(self) -> bool:
        """Whether the request, which asks for that, changes to another protocol: a WebSocket, or a tunnel that is no
        request for anything here."""
        return bool(self._should_upgrade()) or self.parser.get_method() == b"CONNECT"

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
