"""Writing trees out: whole ones into empty directories, for forks, and parts of them for a restore.

Contents are copied inside the kernel, or share their blocks where the file system can do that copy-on-write. They are
never hard-linked: two workspaces must not write into each other, nor into the store.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from server.checkpoints.content import write_content
from server.checkpoints.descent import Descent
from server.checkpoints.index import RACY_NS, Node
from server.checkpoints.listing import DIRECTORY_ROW, Row, pack_rows, row_of
from server.checkpoints.manifest import DIRECTORY, SKIPPED, SYMLINK, Directory, Entry
from server.checkpoints.objects import Copier
from server.checkpoints.trees import Trees
from server.checkpoints.work import Stop

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSIONS_AT_OPEN: Final = 0o777


def process_umask() -> int:
    """The bits that the system takes away from the mode of a new file (read without changing them)."""
    found = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 8) if found else 0o777


class Writer:
    """Writes stored entries into directories.

    Args:
        owner: user and group that everything is given to; None leaves it with the server's own user.
    """

    def __init__(self, trees: Trees, owner: int | None, stop: Stop) -> None:
        self._trees = trees
        self._copier = Copier(trees.objects)
        self._owner = owner
        self._stop = stop
        self._umask = process_umask()
        self.written = 0

    def file(self, parent: int, name: bytes, entry: Entry) -> os.stat_result:
        """Write a file that must not be there yet, and return its state."""
        mode = entry.mode
        fd = os.open(name, _CREATE, mode & _PERMISSIONS_AT_OPEN, dir_fd=parent)
        try:
            write_content(self._trees.objects, self._copier, entry, fd, self._stop)
            if self._owner is not None:
                os.fchown(fd, self._owner, self._owner)
            if mode & ~self._umask & _PERMISSIONS_AT_OPEN != mode:
                os.fchmod(fd, mode)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
            self.written += 1
            return os.fstat(fd)
        finally:
            os.close(fd)

    def link(self, parent: int, name: bytes, entry: Entry) -> os.stat_result:
        """Make a symbolic link that must not be there yet, and return its state."""
        os.symlink(entry.payload, name, dir_fd=parent)
        if self._owner is not None:
            os.chown(name, self._owner, self._owner, dir_fd=parent, follow_symlinks=False)
        self.written += 1
        return os.lstat(name, dir_fd=parent)

    def entry(self, descent: Descent, name: bytes, entry: Entry) -> None:
        """Write any entry under a name in the present directory; skipped ones are left out."""
        if entry.kind == DIRECTORY:
            self._make_directory(descent.fd, name)
            descent.enter(name)
            self.tree(descent, entry.payload)
            descent.leave()
        elif entry.kind == SYMLINK:
            self.link(descent.fd, name, entry)
        elif entry.kind != SKIPPED:
            self.file(descent.fd, name, entry)

    def tree(self, descent: Descent, digest: bytes) -> Node:
        """Fill the present, empty directory with a tree, its own mode included.

        Returns:
            The tree's node for an index, so that its first checkpoint need not read it.
        """
        frames = [_Frame(b"", digest, self._trees.read(digest))]
        self._fill(descent, frames[-1])
        while True:
            frame = frames[-1]
            below = next(frame.directories, None)
            if below is not None:
                self._make_directory(descent.fd, below.name)
                descent.enter(below.name)
                frames.append(_Frame(below.name, below.payload, self._trees.read(below.payload)))
                self._fill(descent, frames[-1])
                continue
            if self._owner is not None:
                os.fchown(descent.fd, self._owner, self._owner)
            descent.set_mode(frame.directory.mode)
            node = frame.node()
            frames.pop()
            if not frames:
                return node
            descent.leave()
            frames[-1].children.append(node)

    def _make_directory(self, parent: int, name: bytes) -> None:
        os.mkdir(name, 0o700, dir_fd=parent)
        self.written += 1

    def _fill(self, descent: Descent, frame: _Frame) -> None:
        parent = descent.fd
        check = self._stop.check
        for entry in frame.directory.entries:
            kind = entry.kind
            if kind == DIRECTORY:
                frame.rows.append(DIRECTORY_ROW)
                continue
            check()
            if kind == SKIPPED:
                continue
            state = (self.link if kind == SYMLINK else self.file)(parent, entry.name, entry)
            frame.rows.append(row_of(state))


class _Frame:
    """A directory that is being written."""

    def __init__(self, name: bytes, digest: bytes, directory: Directory) -> None:
        self.name = name
        self.digest = digest
        self.directory = directory
        self.directories: Iterator[Entry] = iter([e for e in directory.entries if e.kind == DIRECTORY])
        self.rows: list[Row] = []
        self.children: list[Node] = []

    def node(self) -> Node:
        entries = self.directory.entries
        racy = time.time_ns() - RACY_NS
        rows = [row if row[0] < racy else (0, *row[1:]) for row in self.rows]
        return Node(
            self.digest,
            self.directory.mode,
            sum(entry.files for entry in entries),
            sum(entry.size for entry in entries if entry.kind != SKIPPED),
            sum(entry.skipped for entry in entries),
            b"\0".join(entry.name for entry in entries if entry.kind != SKIPPED),
            pack_rows(rows),
            self.children,
        )
