"""What a tree looked like when it was last read, so that the next reading costs what changed.

For each directory the index keeps the names in it and, for each file and link, numbers that cannot all stay the same
when it changes: the time of its last change of any kind (``ctime``, which no program can set), inode, size, mode.
A directory whose names and numbers are as before, below which nothing changed, is taken over by its hash without
being looked into. The time of modification is no part of this, as every program can forge it.

A change within the same tick of the kernel's clock would not move ``ctime``. So a file that changed shortly before it
was read is kept with a ``ctime`` of 0, which never matches, and is read again the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from server.checkpoints.listing import NUMBERS

RACY_NS: Final = 50_000_000
"""Longer than a tick of the kernel's clock (1 to 10 ms), with room for a busy machine."""

RECENT: Final = 8
"""Trees that a key keeps from being collected: those last seen under it, recorded by the session or not."""

_MAGIC: Final = b"rookery index 1\n"
_HEAD: Final = struct.Struct("<QQ")
_NODE: Final = struct.Struct("<32sHQQQIII")


@dataclass(slots=True)
class Node:
    """A directory as last seen."""

    digest: bytes
    mode: int
    files: int
    size: int
    """Of all files below, in bytes."""
    skipped: int
    names: bytes
    """Names of all entries in the order of reading, packed (:mod:`server.checkpoints.listing`)."""
    rows: bytes
    """The rows of all entries in the same order, packed."""
    children: list[Node] = field(default_factory=list)
    """Its sub-directories, in the order of ``names``."""


@dataclass
class Index:
    """The index of one key."""

    device: int
    inode: int
    """Of the tree's root: another directory at the same place is another tree."""
    root: Node


def distrust_recent(root: Node, now_ns: int) -> None:
    """Mark the files that changed so shortly before ``now_ns`` that a later change might show no other ``ctime``.

    For a tree that nobody else could touch until now: what changes from now on shows in all the others.
    """
    racy = now_ns - RACY_NS
    waiting = [root]
    while waiting:
        node = waiting.pop()
        waiting.extend(node.children)
        rows = array("Q", node.rows)
        if max(rows[::NUMBERS], default=0) < racy:
            continue
        for at in range(0, len(rows), NUMBERS):
            if rows[at] >= racy:
                rows[at] = 0
        node.rows = rows.tobytes()


def save(path: Path, index: Index) -> None:
    """Write an index, at once or not at all. It is not flushed: a lost or torn one only costs a full reading.

    Raises:
        OSError: no room, or another failure of the disk; the old index is in place then.
    """
    parts = [_MAGIC, _HEAD.pack(index.device, index.inode)]
    waiting = [index.root]
    while waiting:
        node = waiting.pop()
        parts.append(
            _NODE.pack(
                node.digest,
                node.mode,
                node.files,
                node.size,
                node.skipped,
                len(node.names),
                len(node.rows),
                len(node.children),
            )
        )
        parts.append(node.names)
        parts.append(node.rows)
        waiting.extend(reversed(node.children))
    body = b"".join(parts)
    replace_file(path, hashlib.sha256(body).digest() + body)


def load(path: Path) -> Index | None:
    """Read an index; None when there is none that can be relied on."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    body = memoryview(data)[32:]
    if hashlib.sha256(body).digest() != data[:32] or not data.startswith(_MAGIC, 32):
        return None
    device, inode = _HEAD.unpack_from(body, len(_MAGIC))
    position = 32 + len(_MAGIC) + _HEAD.size
    unpack = _NODE.unpack_from
    root: Node | None = None
    open_nodes: list[tuple[Node, int]] = []
    while position < len(data):
        digest, mode, files, size, skipped, names_length, rows_length, children = unpack(data, position)
        start = position + _NODE.size
        middle = start + names_length
        position = middle + rows_length
        node = Node(digest, mode, files, size, skipped, data[start:middle], data[middle:position])
        while open_nodes and len(open_nodes[-1][0].children) == open_nodes[-1][1]:
            open_nodes.pop()
        if open_nodes:
            open_nodes[-1][0].children.append(node)
        else:
            root = node
        open_nodes.append((node, children))
    return None if root is None else Index(device, inode, root)


def recent_trees(path: Path) -> tuple[bytes, ...]:
    """The trees last seen under a key, latest first."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ()
    return tuple(data[at : at + 32] for at in range(0, len(data) - len(data) % 32, 32))


def save_recent(path: Path, trees: tuple[bytes, ...]) -> None:
    """Keep the first :data:`RECENT` of ``trees``."""
    replace_file(path, b"".join(trees[:RECENT]))


def replace_file(path: Path, data: bytes) -> None:
    """Put a file of ours in place of another, at once or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
