"""Files of a tree into the object store, and back.

Reading never blocks on what the agent put there: files are opened with ``O_NOFOLLOW | O_NONBLOCK`` and looked at
again through the descriptor before a byte is read.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Final, NamedTuple

from server.checkpoints.descent import OPEN_FILE, unlocked
from server.checkpoints.manifest import CHUNK, FILE, LARGE_FILE, DamagedError, Entry, decode_chunks, encode_chunks
from server.checkpoints.objects import Batch, Copier, ObjectStore
from server.checkpoints.records import Limits
from server.checkpoints.work import DamagedStoreError, Stop
from server.errors import ErrorCode, RookeryError

_ZEROS: Final = bytes(CHUNK)
_OWNER_READ: Final = 0o400

TRIES: Final = 3
"""How often a file that changes while it is read is read again, before the last reading is taken as it is."""


class TooLargeError(Exception):
    """A file holds more data than a checkpoint takes."""


class Stored(NamedTuple):
    """A file's content in the store."""

    kind: int
    digest: bytes
    size: int
    state: os.stat_result
    """Of the file, after the last byte was read."""
    steady: bool
    """Whether the file did not change while it was read."""


@dataclass
class Budget:
    """How many bytes one checkpoint may still read."""

    left: int

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT,
                "The workspace holds more new data than a checkpoint takes: remove large files, then try again.",
            )


def store_file(
    name: str | bytes, parent: int, batch: Batch, limits: Limits, budget: Budget, stop: Stop
) -> Stored | None:
    """Put the content of the regular file ``name`` of the directory ``parent`` into the store.

    Returns:
        None when it is no regular file (any more).

    Raises:
        TooLargeError: it holds more data than ``limits`` allow.
        PermissionError: it cannot be read.
        BlockingIOError: another process holds a lease on it.
        OSError: ``ELOOP``, ``ENOENT``: it was replaced or removed; anything else: the disk.
    """
    fd = _open(name, parent)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            return None
        for attempt in range(TRIES):
            kind, digest, size = _store(fd, before.st_size, batch, limits, budget, stop)
            after = os.fstat(fd)
            steady = after.st_ctime_ns == before.st_ctime_ns and after.st_size == before.st_size == size
            if steady or attempt == TRIES - 1:
                return Stored(kind, digest, size, after, steady)
            os.lseek(fd, 0, os.SEEK_SET)
            before = after
        raise AssertionError("unreachable")
    finally:
        os.close(fd)


def _open(name: str | bytes, parent: int) -> int:
    try:
        return os.open(name, OPEN_FILE, dir_fd=parent)
    except PermissionError:
        if os.geteuid() == 0:
            raise
        with unlocked(name, parent, stat.S_IFREG, _OWNER_READ):
            return os.open(name, OPEN_FILE, dir_fd=parent)


def _store(fd: int, size: int, batch: Batch, limits: Limits, budget: Budget, stop: Stop) -> tuple[int, bytes, int]:
    if size > CHUNK:
        return _store_chunks(fd, size, batch, limits, budget, stop)
    data = os.read(fd, size + 1)
    if len(data) != size:
        parts = [data]
        total = len(data)
        while data and total <= CHUNK:
            data = os.read(fd, CHUNK)
            parts.append(data)
            total += len(data)
        if total > CHUNK:
            return _store_chunks(fd, os.fstat(fd).st_size, batch, limits, budget, stop)
        data = b"".join(parts)
    if len(data) > limits.max_file_bytes:
        raise TooLargeError
    budget.take(len(data))
    return FILE, batch.put(data), len(data)


def _store_chunks(
    fd: int, size: int, batch: Batch, limits: Limits, budget: Budget, stop: Stop
) -> tuple[int, bytes, int]:
    """Store the first ``size`` bytes. Of a file that is cut meanwhile the rest is taken as zeros; it is read again."""
    chunks: list[tuple[int, bytes]] = []
    position = 0
    seen = 0
    while position < size and (start := _next_data(fd, position)) is not None and start < size:
        stop.check()
        number = start // CHUNK
        position = (number + 1) * CHUNK
        data = _pread(fd, min(CHUNK, size - number * CHUNK), number * CHUNK)
        data += bytes(min(position, size) - number * CHUNK - len(data))
        seen += len(data)
        if seen > limits.max_file_bytes:
            raise TooLargeError
        budget.take(len(data))
        if data != _ZEROS[: len(data)]:
            chunks.append((number, batch.put(data)))
    return LARGE_FILE, batch.put(encode_chunks(size, chunks)), size


def _next_data(fd: int, position: int) -> int | None:
    """Where data begins at or after ``position``; None when only a hole is left."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno == errno.EINVAL:
            # A file system that knows no holes: everything up to the end is data.
            return position if position < os.fstat(fd).st_size else None
        raise


def _pread(fd: int, count: int, offset: int) -> bytes:
    data = os.pread(fd, count, offset)
    while 0 < len(data) < count and (more := os.pread(fd, count - len(data), offset + len(data))):
        data += more
    return data


def write_content(objects: ObjectStore, copier: Copier, entry: Entry, target: int, stop: Stop) -> None:
    """Fill the new, empty file ``target`` with the content of ``entry``; holes stay holes.

    Raises:
        RookeryError: ``storage_unavailable``: the content is damaged.
        OSError: no room, or another failure of the disk.
    """
    if entry.kind == FILE:
        if entry.size:
            copier.copy(entry.payload, entry.size, target)
        return
    size, chunks = chunk_list(objects, entry.payload)
    os.ftruncate(target, size)
    for number, digest in chunks:
        stop.check()
        copier.copy(digest, min(CHUNK, size - number * CHUNK), target, number * CHUNK)


def read_content(objects: ObjectStore, entry: Entry, offset: int, limit: int) -> bytes:
    """At most ``limit`` bytes of the content of ``entry`` from ``offset``.

    Raises:
        RookeryError: ``storage_unavailable``: the content is damaged.
    """
    end = min(entry.size, offset + limit)
    if offset >= end:
        return b""
    if entry.kind == FILE:
        return _read_object(objects, entry.payload, offset, end - offset)
    size, chunks = chunk_list(objects, entry.payload)
    end = min(end, size)
    by_number = dict(chunks)
    parts: list[bytes] = []
    while offset < end:
        number, within = divmod(offset, CHUNK)
        count = min(CHUNK - within, end - offset)
        digest = by_number.get(number)
        parts.append(bytes(count) if digest is None else _read_object(objects, digest, within, count))
        offset += count
    return b"".join(parts)


def chunk_list(objects: ObjectStore, digest: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """Size of a large file, and number and hash of each of its chunks that is not all zeros.

    Raises:
        RookeryError: ``storage_unavailable``: its list is missing or damaged.
    """
    try:
        return decode_chunks(objects.read(digest))
    except DamagedError as error:
        raise DamagedStoreError(f"object {digest.hex()}: {error}") from error


def chunks_of(objects: ObjectStore, entry: Entry) -> list[bytes]:
    """The hashes of the chunks that a large file hangs on.

    Raises:
        RookeryError: ``storage_unavailable``: its list is missing or damaged.
    """
    return [digest for _, digest in chunk_list(objects, entry.payload)[1]] if entry.kind == LARGE_FILE else []


def _read_object(objects: ObjectStore, digest: bytes, offset: int, count: int) -> bytes:
    fd = objects.open(digest)
    try:
        data = _pread(fd, count, offset)
    finally:
        os.close(fd)
    if len(data) != count:
        raise DamagedStoreError(f"object {digest.hex()} is cut short")
    return data
