"""What goes back into the sandbox: status, allowed headers, and errors that the CLI can act on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from server.gateway.refusals import JSON, Refusal, error_body

if TYPE_CHECKING:
    from starlette.types import Send

_PASSED: Final = frozenset({"content-type", "request-id", "retry-after", "retry-after-ms", "x-should-retry"})
_PASSED_PREFIX: Final = "anthropic-ratelimit-"
_MAX_VALUE: Final = 1024

EVENT_STREAM: Final = "text/event-stream"


Headers = list[tuple[bytes, bytes]]


def passed_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    """Headers of the upstream that may go into the sandbox: none that names hosts, cookies or the organisation."""
    result: Headers = []
    for name, value in headers:
        key = name.lower()
        if (key in _PASSED or key.startswith(_PASSED_PREFIX)) and len(value) <= _MAX_VALUE:
            result.append((key.encode("latin-1"), value.encode("latin-1", "replace")))
    return result


def with_header(headers: Headers, name: bytes, value: bytes) -> Headers:
    """``headers`` with one set to a value."""
    return [(key, old) for key, old in headers if key != name] + [(name, value)]


class Reply:
    """The response to one request of a sandbox. Knows how far it is, so that every way out can end it properly."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.finished = False

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a complete response."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, with_header(headers, *length))
        await self.end(body)

    async def refuse(self, refusal: Refusal) -> None:
        """Send an answer of our own; as an event when a stream has begun."""
        if self.finished:
            return
        if self.started:
            await self.end(b"event: error\ndata: " + error_body(refusal.error_type, refusal.message) + b"\n\n")
            return
        headers = [(b"content-type", JSON.encode()), *refusal.headers]
        await self.whole(refusal.status, headers, refusal.body)

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def chunk(self, body: bytes) -> None:
        """Send the next part of the body; waits while the sandbox does not read."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """Send the last part."""
        self.finished = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
