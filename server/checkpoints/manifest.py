"""The form of stored directories and of large files.

A directory is one object: its own permission bits and its entries, sorted by name. It names its files and
sub-directories by the hash of their content, so equal directories are one object, a tree is known by the hash of its
root, and two trees are compared by looking only where hashes differ.

A file of more than :data:`CHUNK` bytes is a list of chunks at fixed offsets; chunks of zeros are left out, so a
sparse file costs what it holds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from server.checkpoints.records import Kind, SkipReason

CHUNK: Final = 4 << 20
"""Size of a piece of a large file: small enough to hold a few in memory, large enough to be copied at full speed."""

DIGEST_BYTES: Final = 32

NAME_MAX: Final = 255
"""Longest file name of Linux, in bytes."""

PERMISSIONS: Final = 0o7777


class DamagedError(ValueError):
    """An object is not what its kind should be."""


class Entry(NamedTuple):
    """One entry of a directory."""

    kind: int
    name: bytes
    mode: int
    """Permission bits; 0 for directories, whose object holds their own."""
    mtime_ns: int
    size: int
    """Of the file; of all below, for a directory."""
    files: int
    """Files and links in it: 1 for these, all below for a directory."""
    skipped: int
    """Skipped entries: 1 for such a one, all below for a directory."""
    payload: bytes
    """Hash of the content (file, large file, directory), target (link) or reason (skipped)."""

    def same(self, other: Entry) -> bool:
        """Whether a user would see no difference: all but the time of modification."""
        return (
            self.payload == other.payload
            and self.kind == other.kind
            and self.mode == other.mode
            and self.size == other.size
        )


FILE: Final = 1
LARGE_FILE: Final = 2
DIRECTORY: Final = 3
SYMLINK: Final = 4
SKIPPED: Final = 5

KINDS: Final = {
    FILE: Kind.FILE,
    LARGE_FILE: Kind.FILE,
    DIRECTORY: Kind.DIRECTORY,
    SYMLINK: Kind.SYMLINK,
    SKIPPED: Kind.SKIPPED,
}


class Directory(NamedTuple):
    """A stored directory."""

    mode: int
    entries: tuple[Entry, ...]


EMPTY: Final = Directory(0o755, ())
"""What stands in for "no tree" in comparisons."""

_TREE_MAGIC: Final = b"rookery tree 1\n"
_TREE_HEAD: Final = struct.Struct(">HI")
_ENTRY: Final = struct.Struct(">BHqQQQHH")
_CHUNKS_MAGIC: Final = b"rookery chunks 1\n"
_CHUNKS_HEAD: Final = struct.Struct(">Q")
_CHUNK_RECORD: Final = struct.Struct(">Q32s")


def valid_name(name: bytes) -> bool:
    """Whether ``name`` can be one component of a path, and no way out of its directory."""
    return 0 < len(name) <= NAME_MAX and name not in (b".", b"..") and b"/" not in name and b"\0" not in name


def encode_directory(mode: int, entries: Iterable[Entry]) -> bytes:
    """The object of a directory. ``entries`` in any order; the same set always gives the same bytes."""
    parts: list[bytes] = []
    for entry in sorted(entries, key=lambda item: item.name):
        kind, name, entry_mode, mtime_ns, size, files, skipped, payload = entry
        head = _ENTRY.pack(kind, entry_mode, mtime_ns, size, files, skipped, len(name), len(payload))
        parts.append(head + name + payload)
    return _TREE_MAGIC + _TREE_HEAD.pack(mode, len(parts)) + b"".join(parts)


def decode_directory(data: bytes) -> Directory:
    """Read a directory's object.

    Raises:
        DamagedError: it is none, or holds a name that could lead out of its directory.
    """
    if not data.startswith(_TREE_MAGIC):
        raise DamagedError("not a directory object")
    try:
        mode, count = _TREE_HEAD.unpack_from(data, len(_TREE_MAGIC))
        position = len(_TREE_MAGIC) + _TREE_HEAD.size
        entries: list[Entry] = []
        previous = b""
        for _ in range(count):
            kind, entry_mode, mtime_ns, size, files, skipped, name_length, length = _ENTRY.unpack_from(data, position)
            start = position + _ENTRY.size
            middle = start + name_length
            position = middle + length
            name = data[start:middle]
            entry = Entry(kind, name, entry_mode, mtime_ns, size, files, skipped, data[middle:position])
            if name <= previous or not valid_name(name):
                raise DamagedError("a directory object holds an unsafe or misplaced name")
            _check_payload(entry)
            previous = name
            entries.append(entry)
    except struct.error as error:
        raise DamagedError("a directory object is cut short") from error
    if position != len(data) or mode > PERMISSIONS:
        raise DamagedError("a directory object has a wrong length or mode")
    return Directory(mode, tuple(entries))


def _check_payload(entry: Entry) -> None:
    if entry.mode > PERMISSIONS:
        raise DamagedError("an entry has bits that are no permissions")
    if entry.kind in (FILE, LARGE_FILE, DIRECTORY):
        if len(entry.payload) != DIGEST_BYTES:
            raise DamagedError("an entry has no hash")
    elif entry.kind == SYMLINK:
        if not entry.payload or b"\0" in entry.payload:
            raise DamagedError("a link has no target")
    elif entry.kind == SKIPPED:
        reason_of(entry)
    else:
        raise DamagedError("an entry is of no known kind")


def reason_of(entry: Entry) -> SkipReason:
    """Why a skipped entry was skipped.

    Raises:
        DamagedError: the reason is unknown.
    """
    try:
        return SkipReason(entry.payload.decode("ascii", "replace"))
    except ValueError as error:
        raise DamagedError("an entry was skipped for no known reason") from error


def encode_chunks(size: int, chunks: Sequence[tuple[int, bytes]]) -> bytes:
    """The object of a large file: its size, and number and hash of each chunk that is not all zeros."""
    return _CHUNKS_MAGIC + _CHUNKS_HEAD.pack(size) + b"".join(_CHUNK_RECORD.pack(*chunk) for chunk in chunks)


def decode_chunks(data: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """Size of a large file, and number and hash of its chunks in order.

    Raises:
        DamagedError: the object is no list of chunks.
    """
    start = len(_CHUNKS_MAGIC) + _CHUNKS_HEAD.size
    if not data.startswith(_CHUNKS_MAGIC) or len(data) < start or (len(data) - start) % _CHUNK_RECORD.size:
        raise DamagedError("not a list of chunks")
    (size,) = _CHUNKS_HEAD.unpack_from(data, len(_CHUNKS_MAGIC))
    chunks: list[tuple[int, bytes]] = list(_CHUNK_RECORD.iter_unpack(data[start:]))
    last = -1
    for number, _ in chunks:
        if number <= last or number * CHUNK >= size:
            raise DamagedError("a chunk lies outside its file")
        last = number
    return size, chunks
