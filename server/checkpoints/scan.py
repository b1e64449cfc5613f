"""Reading a tree into the store: what a checkpoint is made by."""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from typing import Final

from server.checkpoints import index as tree_index
from server.checkpoints.content import Budget, TooLargeError, store_file
from server.checkpoints.descent import OWNER_READ, Descent
from server.checkpoints.index import Index, Node
from server.checkpoints.listing import (
    DIRECTORY_ROW,
    UNKNOWN_ROW,
    Listing,
    Row,
    TooManyError,
    pack_names,
    pack_rows,
    read_listing,
    row_of,
    unpack_names,
    unpack_rows,
)
from server.checkpoints.manifest import DIRECTORY, SKIPPED, SYMLINK, Directory, Entry, encode_directory
from server.checkpoints.objects import Batch
from server.checkpoints.records import Limits, SkipReason
from server.checkpoints.trees import Trees
from server.checkpoints.work import Stop
from server.errors import ErrorCode, RookeryError

FILE_MODE_BITS: Final = 0o1777
"""Permission bits kept of files. Set-user-id and set-group-id mean nothing inside a sandbox (no new privileges), but
written by the host they would hand the owner's rights to whoever can reach the file."""

DIRECTORY_MODE_BITS: Final = 0o3777
"""Of directories the set-group-id bit is kept: there it only says which group new files get."""

_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})
_REPLACED: Final = frozenset({errno.ELOOP, errno.EINVAL, errno.ENOTDIR, errno.ENXIO, errno.EISDIR})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM})


class Touched(dict[bytes, "Touched"]):
    """Directories that may differ from the index, by name; those not named are taken as they were."""


@dataclass(slots=True)
class _Frame:
    """A directory that is being read."""

    name: str
    mode: int
    old: Node | None
    touched: Touched | None
    """What to look at below; None: everything."""
    names: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    same: bool = False
    """Whether names and rows are those of ``old``."""
    entries: list[Entry] = field(default_factory=list)
    """Of a directory that is not the same: all but its sub-directories."""
    directories: list[tuple[str, int, Node | None]] = field(default_factory=list)
    """Sub-directories still to be read, last first: name, permission bits, and what they were."""
    children: list[tuple[str, Node]] = field(default_factory=list)


class Scan:
    """One reading of a tree.

    Args:
        trees: where its directories are kept.
        batch: takes the new objects.
        old: the index of the last reading of the same tree, or None.
        touched: with it, only these directories are read, and all that ``old`` does not know.
    """

    def __init__(
        self,
        trees: Trees,
        batch: Batch,
        limits: Limits,
        old: Index | None,
        stop: Stop,
        *,
        touched: Touched | None = None,
    ) -> None:
        self._trees = trees
        self._batch = batch
        self._limits = limits
        self._stop = stop
        self._budget = Budget(limits.max_new_bytes)
        self._old = old
        self._touched = touched
        self._device = 0
        self._entries = 0

    def read(self, root: int) -> Index:
        """Read the tree below the directory ``root`` (a descriptor, taken over and closed).

        Raises:
            RookeryError: ``invalid_argument``: the tree is over its bounds.
            TreeMovedError: directories were moved under the reading.
            OSError: the disk.
        """
        try:
            # Before the descent, which may lend itself rights.
            found = os.fstat(root)
        except OSError:
            os.close(root)
            raise
        self._device = found.st_dev
        old = self._old
        known = old.root if old is not None and (old.device, old.inode) == (found.st_dev, found.st_ino) else None
        descent = Descent(root, OWNER_READ)
        try:
            frame = _Frame("", found.st_mode & DIRECTORY_MODE_BITS, known, self._touched)
            self._look_at(root, frame, self._list(root))
            node = self._read(descent, frame)
        finally:
            descent.close()
        return Index(found.st_dev, found.st_ino, node)

    def _read(self, descent: Descent, root: _Frame) -> Node:
        frames = [root]
        while True:
            frame = frames[-1]
            if frame.directories:
                child = self._enter(descent, frame, *frame.directories.pop())
                if child is not None:
                    frames.append(child)
                continue
            node = self._finish(frame)
            frames.pop()
            if not frames:
                return node
            descent.leave()
            frames[-1].children.append((frame.name, node))

    def _enter(self, descent: Descent, parent: _Frame, name: str, mode: int, old: Node | None) -> _Frame | None:
        """Go into a directory and look at it; None when it is done with, and left again."""
        touched = None
        if parent.touched is not None:
            touched = parent.touched.get(os.fsencode(name))
            if touched is None and old is not None and old.mode == mode:
                parent.children.append((name, old))
                return None
        self._stop.check()
        try:
            fd = descent.enter(name, mode)
        except OSError as error:
            if error.errno in _GONE:
                self._drop(parent, name)
            elif error.errno in _REPLACED:
                self._skip_directory(parent, name, SkipReason.BUSY)
            elif error.errno in _FORBIDDEN:
                self._skip_directory(parent, name, SkipReason.UNREADABLE)
            else:
                raise
            return None
        if descent.depth > self._limits.max_depth:
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT,
                f"The workspace has more than {self._limits.max_depth:,} directories inside each other: "
                "remove some, then try again.",
            )
        listing = self._list(fd)
        if old is not None and not old.children and old.mode == mode and _same(old, listing):
            # Most directories are like this one: nothing in it changed, and no directory is in it.
            descent.leave()
            parent.children.append((name, old))
            return None
        frame = _Frame(name, mode, old, touched)
        self._look_at(fd, frame, listing)
        return frame

    def _list(self, fd: int) -> Listing:
        try:
            listing = read_listing(fd, self._limits.max_entries - self._entries)
        except TooManyError as error:
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT,
                f"The workspace holds more than {self._limits.max_entries:,} files: remove some, then try again.",
            ) from error
        self._entries += len(listing.names)
        return listing

    def _look_at(self, fd: int, frame: _Frame, listing: Listing) -> None:
        """Find out which sub-directories there are, and read all files that are new or changed."""
        frame.names, frame.rows, directories = listing
        old = frame.old
        foreign = [name for name, _, device in directories if device != self._device]
        if old is not None and not foreign and _same(old, listing):
            frame.same = True
            for (name, mode, _), node in zip(reversed(directories), reversed(old.children), strict=True):
                frame.directories.append((name, mode & DIRECTORY_MODE_BITS, node))
            return
        known = _children_of(old) if old is not None else {}
        for name, mode, device in reversed(directories):
            if device == self._device:
                frame.directories.append((name, mode & DIRECTORY_MODE_BITS, known.get(os.fsencode(name))))
        self._record(fd, frame)
        for name in foreign:
            self._skip_directory(frame, name, SkipReason.OTHER_FILESYSTEM)

    def _record(self, fd: int, frame: _Frame) -> None:
        """Fill ``frame.entries``: what is unchanged from the stored directory, the rest from the files."""
        old_rows, old_entries = self._remembered(frame.old)
        gone: list[str] = []
        for at, name in enumerate(frame.names):
            row = frame.rows[at]
            if row == DIRECTORY_ROW:
                continue
            raw = os.fsencode(name)
            if old_rows.get(raw) == row and (entry := old_entries.get(raw)) is not None:
                frame.entries.append(entry)
                continue
            self._stop.check()
            recorded = self._record_one(fd, name, raw)
            if recorded is None:
                gone.append(name)
                continue
            entry, frame.rows[at] = recorded
            frame.entries.append(entry)
        for name in gone:
            self._drop(frame, name)

    def _remembered(self, old: Node | None) -> tuple[dict[bytes, Row], dict[bytes, Entry]]:
        if old is None:
            return {}, {}
        rows = dict(zip(unpack_names(old.names), unpack_rows(old.rows), strict=True))
        return rows, {entry.name: entry for entry in self._trees.read(old.digest).entries}

    def _record_one(self, fd: int, name: str, raw: bytes) -> tuple[Entry, Row] | None:
        """Read one entry that is no directory; None when it is gone."""
        state: os.stat_result | None = None
        for _ in range(3):
            try:
                state = os.lstat(name, dir_fd=fd)
                recorded = self._read_entry(fd, name, raw, state)
            except OSError as error:
                if error.errno in _GONE:
                    return None
                if error.errno in _FORBIDDEN:
                    return _skipped(raw, SkipReason.UNREADABLE, state)
                if error.errno == errno.EWOULDBLOCK:
                    return _skipped(raw, SkipReason.BUSY, state)
                if error.errno in _REPLACED:
                    continue
                raise
            if recorded is not None:
                return recorded
        return _skipped(raw, SkipReason.BUSY, state)

    def _read_entry(self, fd: int, name: str, raw: bytes, state: os.stat_result) -> tuple[Entry, Row] | None:
        """Read one entry of the kind that ``state`` says; None when it turns out to be of another."""
        mode = state.st_mode
        if stat.S_ISREG(mode):
            try:
                stored = store_file(name, fd, self._batch, self._limits, self._budget, self._stop)
            except TooLargeError:
                return _skipped(raw, SkipReason.TOO_LARGE, state)
            if stored is None:
                return None
            kind, digest, size, after, steady = stored
            entry = Entry(kind, raw, after.st_mode & FILE_MODE_BITS, after.st_mtime_ns, size, 1, 0, digest)
            return entry, _row_of(after, steady)
        if stat.S_ISLNK(mode):
            target = os.fsencode(os.readlink(name, dir_fd=fd))
            entry = Entry(SYMLINK, raw, 0o777, 0, len(target), 1, 0, target)
            return entry, _row_of(state, True)
        return None if stat.S_ISDIR(mode) else _skipped(raw, SkipReason.of(mode), state)

    def _finish(self, frame: _Frame) -> Node:
        """Make the node of a directory whose sub-directories are all read."""
        old = frame.old
        children = [node for _, node in frame.children]
        if frame.same and old is not None:
            if old.mode == frame.mode and all(
                node is known or node.digest == known.digest for node, known in zip(children, old.children, strict=True)
            ):
                old.children = children
                return old
            stored = self._trees.read(old.digest).entries
            frame.entries = [entry for entry in stored if entry.kind != DIRECTORY]
        entries = frame.entries
        for name, node in frame.children:
            entries.append(Entry(DIRECTORY, os.fsencode(name), 0, 0, node.size, node.files, node.skipped, node.digest))
        entries.sort(key=lambda entry: entry.name)
        data = encode_directory(frame.mode, entries)
        digest = self._batch.put(data)
        self._trees.remember(digest, Directory(frame.mode, tuple(entries)))
        return Node(
            digest,
            frame.mode,
            sum(entry.files for entry in entries),
            sum(entry.size for entry in entries if entry.kind != SKIPPED),
            sum(entry.skipped for entry in entries),
            pack_names(frame.names),
            pack_rows(frame.rows),
            children,
        )

    def _drop(self, frame: _Frame, name: str) -> None:
        """Forget an entry that is gone."""
        self._differs(frame)
        at = frame.names.index(name)
        del frame.names[at]
        del frame.rows[at]

    def _skip_directory(self, frame: _Frame, name: str, reason: SkipReason) -> None:
        """Record a directory that is not read. It counts as changed the next time, so it is tried again."""
        self._differs(frame)
        frame.rows[frame.names.index(name)] = UNKNOWN_ROW
        frame.entries.append(_skipped(os.fsencode(name), reason, None)[0])

    def _differs(self, frame: _Frame) -> None:
        """Go on with a directory that was taken for unchanged as one that changed."""
        if frame.same and frame.old is not None:
            frame.same = False
            stored = self._trees.read(frame.old.digest).entries
            frame.entries = [entry for entry in stored if entry.kind != DIRECTORY]


def _same(old: Node, listing: Listing) -> bool:
    """Whether a directory holds what it held; of its sub-directories only that they are there."""
    return old.rows == pack_rows(listing.rows) and old.names == pack_names(listing.names)


def _children_of(node: Node) -> dict[bytes, Node]:
    pairs = zip(unpack_names(node.names), unpack_rows(node.rows), strict=True)
    return dict(zip([name for name, row in pairs if row == DIRECTORY_ROW], node.children, strict=True))


def _row_of(state: os.stat_result, steady: bool) -> Row:
    """The numbers of a file, with a ``ctime`` of 0 where a later change might not show in it."""
    row = row_of(state)
    racy = not steady or row[0] >= time.time_ns() - tree_index.RACY_NS
    return (0, *row[1:]) if racy else row


def _skipped(raw: bytes, reason: SkipReason, state: os.stat_result | None) -> tuple[Entry, Row]:
    size = state.st_size if state is not None and reason.holds_content else 0
    entry = Entry(SKIPPED, raw, 0, 0, size, 0, 1, reason.value.encode())
    if state is None or reason in (SkipReason.UNREADABLE, SkipReason.BUSY):
        # Looked at again the next time: the reason may be gone without a change of the file.
        return entry, UNKNOWN_ROW
    return entry, _row_of(state, True)
