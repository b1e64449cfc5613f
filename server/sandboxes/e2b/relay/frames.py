"""Frames between a host and a relay: one line of JSON, then the payload that it announces.

The way into the sandbox takes any bytes. The way out passes through text (the SDK decodes a command's output as
UTF-8), so a frame on it carries its payload as it is where that is valid UTF-8, and as base64 where it is not.
"""

from __future__ import annotations

import base64
import json
from typing import Any

MAX_HEADER = 16 * 1024
"""Longest header, in bytes, its newline included."""

MAX_PAYLOAD = 8 << 20
"""Largest payload, in bytes, before base64."""

PIECE = 64 * 1024
"""Payload of a frame that carries a part of a stream."""


class ProtocolError(Exception):
    """What came is no frame, or not the one that had to follow."""


class Frame:
    """One message.

    Args:
        kind: what it is.
        fields: JSON values; small ones, for they must fit the header.
        payload: bytes of any kind.
    """

    __slots__ = ("fields", "kind", "payload")

    def __init__(self, kind: str, fields: dict[str, Any] | None = None, payload: bytes = b"") -> None:
        self.kind = kind
        self.fields = fields or {}
        self.payload = payload

    def number(self, name: str) -> int:
        """An integer field.

        Raises:
            ProtocolError: it is missing or none.
        """
        value = self.fields.get(name)
        if not isinstance(value, int):
            raise ProtocolError(f"{self.kind} without {name}")
        return value

    def text(self, name: str) -> str:
        """A string field; empty when it is missing."""
        value = self.fields.get(name, "")
        return value if isinstance(value, str) else ""


def encode(frame: Frame, *, text: bool) -> bytes:
    """A frame as bytes; as valid UTF-8 with ``text``."""
    header: dict[str, Any] = {"k": frame.kind}
    header.update(frame.fields)
    payload = frame.payload
    if payload:
        if text and not _is_text(payload):
            payload = base64.b64encode(payload)
            header["e"] = "b"
        header["n"] = len(payload)
    line = json.dumps(header, separators=(",", ":")).encode("ascii")
    if len(line) >= MAX_HEADER:
        raise ProtocolError(f"the header of {frame.kind} is too long")
    return b"%s\n%s" % (line, payload)


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def whole_characters(data: bytes) -> int:
    """How many of the first bytes end with a whole character, if only the last one is cut off; else all of them."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and 0 < len(data) - error.start < 4:
            return error.start
    return len(data)


class Decoder:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._header: dict[str, Any] | None = None
        self._wanted = 0

    def push(self, data: bytes) -> list[Frame]:
        """Take the next bytes; the frames that they complete.

        Raises:
            ProtocolError: this is no frame. The decoder must not be used after that.
        """
        frames: list[Frame] = []
        at, size = 0, len(data)
        while at < size:
            if self._header is None:
                end = data.find(b"\n", at)
                if end < 0:
                    self._hold(data[at:], MAX_HEADER)
                    break
                self._hold(data[at:end], MAX_HEADER)
                at = end + 1
                self._header = _header(self._taken())
                self._wanted = _size(self._header)
            else:
                piece = data[at : at + self._wanted - self._held]
                self._hold(piece, self._wanted)
                at += len(piece)
            if self._held == self._wanted:
                frames.append(_frame(self._header, self._taken()))
                self._header = None
        return frames

    def _hold(self, piece: bytes, limit: int) -> None:
        self._held += len(piece)
        if self._held > limit:
            raise ProtocolError("what came is no frame")
        self._parts.append(piece)

    def _taken(self) -> bytes:
        taken = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._held = [], 0
        return taken


def _header(line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError as error:
        raise ProtocolError("what came is no frame") from error
    if not isinstance(header, dict) or not isinstance(header.get("k"), str):
        raise ProtocolError("what came is no frame")
    return header


def _size(header: dict[str, Any]) -> int:
    size = header.pop("n", 0)
    if not isinstance(size, int) or not 0 <= size <= 2 * MAX_PAYLOAD:
        raise ProtocolError(f"a frame announces {size!r} bytes")
    return size


def _frame(header: dict[str, Any], payload: bytes) -> Frame:
    kind = header.pop("k")
    if header.pop("e", None) == "b":
        try:
            payload = base64.b64decode(payload, validate=True)
        except ValueError as error:
            raise ProtocolError("a payload is no base64") from error
    return Frame(kind, header, payload)
