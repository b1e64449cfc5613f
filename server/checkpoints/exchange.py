"""Trees from one object store to another: what the other lacks, as one compressed stream. Standard library only.

Both stores know a *base*, a tree that the receiver holds whole. The sender lists the objects by which the new tree
differs from it, each after all that it hangs on; the receiver says which of them it lacks, and gets their contents one
after the other, compressed. Nothing of the sender is trusted: a content is kept only under its own hash, only those
are taken that were asked for, and a tree counts as there only once it was walked (:func:`check`).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from server.checkpoints.content import chunk_list
from server.checkpoints.manifest import CHUNK, DIRECTORY, FILE, LARGE_FILE, SKIPPED, Directory, Entry
from server.checkpoints.objects import ObjectStore, digest_of
from server.checkpoints.trees import Trees
from server.checkpoints.work import DamagedStoreError, Stop
from server.errors import ErrorCode, RookeryError

MAX_OBJECT: Final = 64 << 20
"""Longest object that is taken: pieces of files have at most 4 MiB; a directory of 300,000 entries less than this."""

MAX_PIECES: Final = 1_000_000
"""Most objects of one exchange."""

LEVEL: Final = 1
"""Of the compression: the stream must not be slower than the way that it goes."""

_STEP: Final = 1 << 20
_RECORD: Final = struct.Struct(">32sQ")


class Piece(NamedTuple):
    """One object, by name and size."""

    digest: bytes
    size: int


def novelties(trees: Trees, base: bytes | None, root: bytes, stop: Stop) -> list[Piece]:
    """The objects that ``root`` hangs on, without those that ``base`` has at the same paths.

    What an object hangs on comes before it, so that whoever keeps them in this order never has a part of a tree under
    the name of the whole.

    Raises:
        RookeryError: ``storage_unavailable``: a part of one of the trees is missing or damaged.
    """
    if root == base:
        return []
    found: dict[bytes, int] = {}
    # By kind: a file may hold the very bytes of a directory's object, and must not stand for it.
    entered: set[tuple[int, bytes]] = {(DIRECTORY, root)}
    frames = [(root, _differing(trees, base, root))]
    while frames:
        digest, entries = frames[-1]
        pair = next(entries, None)
        if pair is None:
            frames.pop()
            _add(found, digest, trees.objects.size(digest))
            continue
        stop.check()
        entry, below = pair
        if entry.kind == FILE:
            _add(found, entry.payload, entry.size)
        elif entry.kind in (DIRECTORY, LARGE_FILE) and (entry.kind, entry.payload) not in entered:
            entered.add((entry.kind, entry.payload))
            if entry.kind == DIRECTORY:
                frames.append((entry.payload, _differing(trees, below, entry.payload)))
                continue
            size, chunks = chunk_list(trees.objects, entry.payload)
            for number, chunk in chunks:
                _add(found, chunk, min(CHUNK, size - number * CHUNK))
            _add(found, entry.payload, trees.objects.size(entry.payload))
    return [Piece(digest, size) for digest, size in found.items()]


def _add(found: dict[bytes, int], digest: bytes, size: int) -> None:
    if found.setdefault(digest, size) != size:
        raise DamagedStoreError(f"object {digest.hex()} is said to have two sizes")


def _differing(trees: Trees, base: bytes | None, digest: bytes) -> Iterator[tuple[Entry, bytes | None]]:
    """The entries of a directory that the base does not have there, each with the directory that it has there."""
    known = {entry.name: entry for entry in trees.read(base).entries}
    for entry in trees.read(digest).entries:
        other = known.get(entry.name)
        if other is None or other.kind != entry.kind or other.payload != entry.payload:
            yield entry, other.payload if other is not None and other.kind == DIRECTORY else None


def check(trees: Trees, base: bytes | None, root: bytes, most: int, stop: Stop) -> None:
    """See that a tree that was received is there whole, and is what its directories say of it.

    Args:
        base: a tree that is known to be whole.
        most: entries that it may have.

    Raises:
        RookeryError: ``storage_unavailable``: it is not; ``invalid_argument``: it has more entries.
    """
    for digest, size in novelties(trees, base, root, stop):
        if trees.objects.size(digest) != size:
            raise DamagedStoreError(f"object {digest.hex()} has not the size that its tree says")
    if _count(trees, root, stop) > most:
        raise RookeryError(
            ErrorCode.INVALID_ARGUMENT,
            f"The workspace holds more than {most:,} files: remove some, then try again.",
        )


def _count(trees: Trees, root: bytes, stop: Stop) -> int:
    """Entries of a whole tree, each directory's own sums checked on the way. A directory is looked into once."""
    counts: dict[bytes, int] = {}
    waiting = [root]
    while waiting:
        stop.check()
        digest = waiting[-1]
        directory = trees.read(digest)
        below = [entry for entry in directory.entries if entry.kind == DIRECTORY]
        missing = [entry.payload for entry in below if entry.payload not in counts]
        if missing:
            waiting.extend(missing)
            continue
        waiting.pop()
        for entry in below:
            if sums(trees.read(entry.payload)) != (entry.files, entry.size, entry.skipped):
                raise DamagedStoreError(f"directory {digest.hex()} says untrue things of {entry.payload.hex()}")
        counts[digest] = len(directory.entries) + sum(counts[entry.payload] for entry in below)
    return counts[root]


def sums(directory: Directory) -> tuple[int, int, int]:
    """Files and links in and below a directory, their sizes added up, and entries skipped."""
    entries = directory.entries
    files = sum(entry.files for entry in entries)
    size = sum(entry.size for entry in entries if entry.kind != SKIPPED)
    return files, size, sum(entry.skipped for entry in entries)


def encode_pieces(pieces: Sequence[Piece]) -> bytes:
    return b"".join(_RECORD.pack(*piece) for piece in pieces)


def decode_pieces(data: bytes) -> list[Piece]:
    """Read a list of pieces that someone else sent.

    Raises:
        RookeryError: ``storage_unavailable``: it is none, or its bounds are unreasonable.
    """
    if len(data) % _RECORD.size or len(data) > MAX_PIECES * _RECORD.size:
        raise DamagedStoreError("a list of objects is cut short, or too long")
    pieces = [Piece(*record) for record in _RECORD.iter_unpack(data)]
    if any(piece.size > MAX_OBJECT for piece in pieces):
        raise DamagedStoreError("an object of unreasonable size is offered")
    return pieces


def lacking(store: ObjectStore, pieces: Sequence[Piece], stop: Stop) -> list[bool]:
    """For each piece, whether the store lacks it. Those that it has stay there for a while."""
    batch = store.batch()
    with store.shared(stop):
        return [not batch.has(*piece) for piece in pieces]


def packed(store: ObjectStore, pieces: Sequence[Piece], stop: Stop) -> Iterator[bytes]:
    """The contents of objects as one compressed stream.

    Raises:
        RookeryError: ``storage_unavailable``: one is missing or cut short.
    """
    compressor = zlib.compressobj(LEVEL)
    for digest, size in pieces:
        stop.check()
        fd = store.open(digest)
        try:
            done = 0
            while done < size:
                data = os.read(fd, min(_STEP, size - done))
                if not data:
                    raise DamagedStoreError(f"object {digest.hex()} is cut short")
                done += len(data)
                if out := compressor.compress(data):
                    yield out
        finally:
            os.close(fd)
    yield compressor.flush()


class Unpacking:
    """Takes the stream of :func:`packed` into a store.

    Args:
        pieces: what it must hold, in this order.
    """

    def __init__(self, store: ObjectStore, pieces: Sequence[Piece]) -> None:
        self._store = store
        self._batch = store.batch()
        self._pieces = iter(pieces)
        self._present = next(self._pieces, None)
        self._decompressor = zlib.decompressobj()
        self._data = bytearray()

    def feed(self, data: bytes, stop: Stop) -> None:
        """Take a part of the stream.

        Raises:
            RookeryError: ``storage_unavailable``: it is not what was asked for.
            OSError: the disk.
        """
        with self._store.shared(stop):
            while True:
                stop.check()
                try:
                    out = self._decompressor.decompress(data, _STEP)
                except zlib.error as error:
                    raise DamagedStoreError(f"a stream of objects is damaged: {error}") from error
                self._data += out
                self._keep()
                if self._decompressor.unused_data:
                    raise DamagedStoreError("a stream of objects goes on behind its end")
                data = self._decompressor.unconsumed_tail
                if not data and len(out) < _STEP:
                    return

    def _keep(self) -> None:
        start = 0
        while self._present is not None and len(self._data) - start >= self._present.size:
            end = start + self._present.size
            content = bytes(self._data[start:end])
            if digest_of(content) != self._present.digest:
                raise DamagedStoreError(f"object {self._present.digest.hex()} was sent with another content")
            self._batch.put(content)
            start = end
            self._present = next(self._pieces, None)
        del self._data[:start]
        if self._present is None and self._data:
            raise DamagedStoreError("a stream of objects holds more than was asked for")

    def finish(self) -> None:
        """See that nothing is missing.

        Raises:
            RookeryError: ``storage_unavailable``: the stream ended too early.
        """
        self._keep()
        if self._present is not None or not self._decompressor.eof:
            raise DamagedStoreError("a stream of objects ended too early")
