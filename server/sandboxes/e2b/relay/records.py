"""A log of bytes on disk that only grows at one end and is trimmed at the other; positions never change.

It lies in files of a few megabytes, so that trimming is removing files.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

SEGMENT = 4 << 20
"""About how many bytes one file holds."""

TAIL = 1 << 20
"""The latest bytes, which are kept in memory too: whoever follows the log reads no file."""

_JOINED = 16 * 1024
"""Small pieces of the tail are joined up to this size."""


class Log:
    """The log. What was in its directory before is removed.

    Args:
        directory: where its files are; made if need be.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in directory.iterdir():
            left.unlink()
        self._directory = directory
        self._segments: deque[tuple[int, Path]] = deque()
        self._file: int | None = None
        self._tail: deque[tuple[int, bytes]] = deque()
        self._tail_size = 0
        self.start = 0
        """Position of the first byte that is still wanted."""
        self.end = 0
        """Position after the last byte."""

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self.end - self.start

    def append(self, data: bytes) -> None:
        """Add bytes at the end.

        Raises:
            OSError: the disk does not take them.
        """
        if self._file is None or self.end - self._segments[-1][0] >= SEGMENT:
            self._begin_segment()
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        if self._tail and len(self._tail[-1][1]) + len(data) <= _JOINED:
            start, last = self._tail.pop()
            self._tail.append((start, last + data))
        else:
            self._tail.append((self.end, data))
        self._tail_size += len(data)
        self.end += len(data)
        while self._tail_size > TAIL and len(self._tail) > 1:
            self._tail_size -= len(self._tail.popleft()[1])

    def _begin_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
        path = self._directory / f"{self.end:016d}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._segments.append((self.end, path))

    def read(self, position: int, limit: int) -> bytes:
        """At most ``limit`` bytes from a position on; empty at the end.

        Raises:
            ValueError: what was there is trimmed, or never was.
            OSError: the file cannot be read.
        """
        if not self.start <= position <= self.end:
            raise ValueError(f"the log holds {self.start} to {self.end}, not {position}")
        if self._tail and position >= self._tail[0][0]:
            return self._latest(position, limit)
        for start, path in reversed(self._segments):
            if start <= position:
                with path.open("rb") as file:
                    file.seek(position - start)
                    return file.read(limit)
        return b""

    def _latest(self, position: int, limit: int) -> bytes:
        """At most ``limit`` bytes of the tail."""
        index = len(self._tail)
        while index and self._tail[index - 1][0] > position:
            index -= 1
        start, first = self._tail[index - 1]
        parts = [first[position - start : position - start + limit]]
        limit -= len(parts[0])
        while limit > 0 and index < len(self._tail):
            parts.append(self._tail[index][1][:limit])
            limit -= len(parts[-1])
            index += 1
        return b"".join(parts)

    def trim(self, position: int) -> None:
        """Nobody wants what is before a position any more."""
        self.start = max(self.start, min(position, self.end))
        while len(self._segments) > 1 and self._segments[1][0] <= self.start:
            self._segments.popleft()[1].unlink()

    def close(self) -> None:
        """Remove it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        while self._segments:
            self._segments.popleft()[1].unlink()
