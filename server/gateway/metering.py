"""Meters a response while it passes: never holds it back, never changes a byte, never counts twice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from server.gateway.usage import BYTES_PER_TOKEN, UsageReader
from server.models import Usage
from server.requests import MODEL_NAME

MAX_EVENT: Final = 4 * 1024 * 1024
"""Bytes of one server-sent event that are held to be read. A larger one passes unread, and the usage is marked as
estimated; it is far above anything the API sends."""

_DELTA_OVERHEAD: Final = len(b'_delta","text":""}}')
"""Bytes of a delta around its text, from the end of its type's name on."""


@dataclass(frozen=True)
class Reading:
    """What a response was found to have used."""

    usage: Usage
    complete: bool
    estimated: bool
    model: str | None
    error_type: str | None = None
    error_message: str = ""


@dataclass
class Meter:
    """Reads usage from one response to ``POST /v1/messages``.

    Args:
        input_estimate: input tokens to charge when the response does not say, from the request's size.
    """

    input_estimate: int
    ended: bool = False
    """The message is complete: nothing that comes after changes what it costs."""
    model: str | None = None
    error_type: str | None = None
    error_message: str = ""
    _reader: UsageReader = field(default_factory=UsageReader)
    _final_output: bool = False
    _unread: bool = False
    _delta_tokens: int = 0
    _buffer: bytearray = field(default_factory=bytearray)
    _searched: int = 0
    _skipping: bool = False

    @property
    def held_bytes(self) -> int:
        """Bytes of an unfinished event held back in memory."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> int:
        """Take in the next bytes of an event stream, cut anywhere.

        Returns:
            How many of them come before the event that ends the message; all, while it is not there.
        """
        # Without anything held back, events are read where they are.
        if self._buffer:
            self._buffer += chunk
        text = self._buffer or chunk
        shift = len(text) - len(chunk)
        before, start, searched = len(chunk), 0, self._searched
        while True:
            end, width = _event_end(text, searched)
            if end < 0:
                break
            if self._skipping:
                self._skipping = False
            elif self._ends(text[start:end]):
                before = max(0, start - shift)
            start = searched = end + width
        self._hold(text, start)
        return before

    def _hold(self, text: bytes | bytearray, start: int) -> None:
        """Keep the event that is not complete yet."""
        if text is self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += text[start:]
        if len(self._buffer) > MAX_EVENT:
            self._unread = self._skipping = True
            # What can still be part of the event's end stays.
            del self._buffer[:-3]
        self._searched = max(0, len(self._buffer) - 3)

    def feed_json(self, content: bytes) -> None:
        """Take in a whole response that is not a stream."""
        try:
            message = json.loads(content)
        except (ValueError, RecursionError):
            self._unread = True
            return
        if not isinstance(message, Mapping):
            self._unread = True
            return
        self._start(message)
        self._final_output = "output_tokens" in self._reader.figures
        self._delta_tokens = 0 if self._final_output else math.ceil(len(content) / BYTES_PER_TOKEN)
        self.ended = True

    def reading(self) -> Reading:
        """What the response used, as far as it came."""
        output_known = self._final_output and not self._unread
        input_known = "input_tokens" in self._reader.figures
        usage = self._reader.usage(
            input_estimate=None if input_known else self.input_estimate,
            output_estimate=None if output_known else self._delta_tokens,
        )
        complete = self.ended and self.error_type is None
        return Reading(
            usage=usage,
            complete=complete,
            estimated=not (input_known and output_known) or self._reader.suspicious,
            model=self.model,
            error_type=self.error_type,
            error_message=self.error_message,
        )

    def _ends(self, event: bytes | bytearray) -> bool:
        """Read an event; whether it ends the message. What comes after that changes nothing."""
        if self.ended:
            return False
        self._event(event)
        return bool(self.ended)

    def _event(self, event: bytes | bytearray) -> None:
        # Nearly all events are deltas: they are measured, not parsed.
        if event.startswith(b"event: content_block_delta") and b'"estimated_tokens"' not in event:
            self._delta_tokens += _tokens_of_delta(event)
            return
        if event.startswith((b"event: ping", b"event: content_block_st")):
            return
        data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        if not data:
            return
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            self._unread = True
            return
        if isinstance(body, Mapping):
            self._body(body)

    def _body(self, body: Mapping[str, Any]) -> None:
        match body.get("type"):
            case "message_start":
                message = body.get("message")
                if isinstance(message, Mapping):
                    self._start(message)
            case "message_delta":
                if "output_tokens" in self._reader.read(body.get("usage")):
                    self._final_output = True
            case "content_block_delta":
                self._delta(body.get("delta"))
            case "message_stop":
                self.ended = True
            case "error":
                error = body.get("error")
                kind = error.get("type") if isinstance(error, Mapping) else None
                self.error_type = kind if isinstance(kind, str) else "api_error"
                text = error.get("message") if isinstance(error, Mapping) else None
                self.error_message = text if isinstance(text, str) else ""
                self.ended = True

    def _start(self, message: Mapping[str, Any]) -> None:
        self._reader.read(message.get("usage"))
        model = message.get("model")
        if isinstance(model, str) and MODEL_NAME.fullmatch(model):
            self.model = model

    def _delta(self, delta: object) -> None:
        """A delta of thinking whose text is withheld tells an estimate of its tokens instead."""
        if not isinstance(delta, Mapping):
            return
        tokens = delta.get("estimated_tokens")
        if isinstance(tokens, int) and not isinstance(tokens, bool) and 0 < tokens < 1 << 32:
            self._delta_tokens += tokens
        else:
            self._delta_tokens += max(1, math.ceil(len(json.dumps(delta)) / BYTES_PER_TOKEN))


def _tokens_of_delta(event: bytes | bytearray) -> int:
    """Tokens of one delta, at least one, from its bytes."""
    kind = event.find(b"_delta", event.find(b'"delta"'))
    if event.startswith(b"signature", kind - len(b"signature")):
        return 0
    return max(1, math.ceil((len(event) - kind - _DELTA_OVERHEAD) / BYTES_PER_TOKEN))


def _event_end(buffer: bytes | bytearray, start: int) -> tuple[int, int]:
    """Where the first event ends and how wide the blank line after it is; -1 when it is not complete."""
    plain = buffer.find(b"\n\n", start)
    windows = buffer.find(b"\r\n\r\n", start, plain + 3 if plain >= 0 else len(buffer))
    if windows >= 0 and (plain < 0 or windows < plain):
        return windows, 4
    return plain, 2
