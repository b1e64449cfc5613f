"""How a server and the files' engine in a sandbox speak: frames over a pair of byte streams. Standard library only.

A message is one JSON frame. Where it says so, data frames follow, and one that ends them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final

MAX_FRAME: Final = 64 << 20
"""Longest frame that is read; listings are the longest that are written."""

PART: Final = 256 << 10
"""Most bytes that one data frame carries."""

_HEAD: Final = struct.Struct(">BI")


class Kind(IntEnum):
    """What a frame carries."""

    MESSAGE = 1
    DATA = 2
    END = 3
    """The end of the data."""


class FramingError(Exception):
    """What came is no frame, or not the one that is due."""


def message(fields: dict[str, Any]) -> bytes:
    """A JSON frame. Undecodable bytes of file names travel in it as surrogate escapes."""
    return frame(Kind.MESSAGE, json.dumps(fields, separators=(",", ":")).encode("ascii"))


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    return _HEAD.pack(kind, len(payload)) + payload


def data_frames(data: bytes) -> Iterator[bytes]:
    """Data as frames, without the end."""
    for start in range(0, len(data), PART):
        yield frame(Kind.DATA, data[start : start + PART])


class Reader:
    """Puts frames together from chunks that may be cut anywhere."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data

    def next(self) -> tuple[Kind, bytes] | None:
        """The next frame; None until more was fed.

        Raises:
            FramingError: it is none.
        """
        if len(self._data) < _HEAD.size:
            return None
        kind, length = _HEAD.unpack_from(self._data)
        if length > MAX_FRAME or kind not in Kind.__members__.values():
            raise FramingError(f"a frame of kind {kind} and {length} bytes")
        end = _HEAD.size + length
        if len(self._data) < end:
            return None
        payload = bytes(self._data[_HEAD.size : end])
        del self._data[:end]
        return Kind(kind), payload


def decoded(payload: bytes) -> dict[str, Any]:
    """The fields of a message.

    Raises:
        FramingError: it is no JSON object.
    """
    try:
        fields = json.loads(payload)
    except ValueError as error:
        raise FramingError("a message is no JSON") from error
    if not isinstance(fields, dict):
        raise FramingError("a message is no object")
    return fields
