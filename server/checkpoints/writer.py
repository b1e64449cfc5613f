"""Writing trees out: whole ones into empty directories, for forks, and parts of them for a restore.

Contents are copied inside the kernel, or share their blocks where the file system can do that copy-on-write. They are
never hard-linked: two workspaces must not write into each other, nor into the store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.checkpoints.content import write_content
from server.checkpoints.crew import Crew
from server.checkpoints.descent import Descent
from server.checkpoints.index import Node
from server.checkpoints.listing import DIRECTORY_ROW, Row, pack_rows, row_of
from server.checkpoints.manifest import DIRECTORY, FILE, SKIPPED, SYMLINK, Entry
from server.checkpoints.objects import Copier
from server.checkpoints.trees import Trees
from server.checkpoints.work import Stop

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSIONS_AT_OPEN: Final = 0o777

_WORTH_A_HAND: Final = 4
"""Files in a directory from which on the crew writes them."""


def process_umask() -> int:
    """The bits that the system takes away from the mode of a new file (read without changing them)."""
    found = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 8) if found else 0o777


class Writer:
    """Writes stored entries into directories.

    Args:
        owner: user and group that everything is given to; None leaves it with the server's own user.
        crew: threads that help to write the files of whole trees; None: the caller's thread does it all.
    """

    def __init__(self, trees: Trees, owner: int | None, stop: Stop, crew: Crew | None = None) -> None:
        self._trees = trees
        self._copier = Copier(trees.objects)
        self._owner = owner
        self._stop = stop
        self._crew = crew
        self._umask = process_umask()
        self.written = 0
        """Entries of whole trees, begun or done."""

    def file(self, parent: int, name: bytes, entry: Entry) -> os.stat_result:
        """Write a file that must not be there yet, and return its state."""
        mode = entry.mode
        fd = os.open(name, _CREATE, mode & _PERMISSIONS_AT_OPEN, dir_fd=parent)
        try:
            if entry.kind != FILE:
                write_content(self._trees.objects, self._copier, entry, fd, self._stop)
            elif entry.size:
                self._copier.copy(entry.payload, entry.size, fd)
            if self._owner is not None:
                os.fchown(fd, self._owner, self._owner)
            if mode & ~self._umask & _PERMISSIONS_AT_OPEN != mode:
                os.fchmod(fd, mode)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
            return os.fstat(fd)
        finally:
            os.close(fd)

    def link(self, parent: int, name: bytes, entry: Entry) -> os.stat_result:
        """Make a symbolic link that must not be there yet, and return its state."""
        os.symlink(entry.payload, name, dir_fd=parent)
        if self._owner is not None:
            os.chown(name, self._owner, self._owner, dir_fd=parent, follow_symlinks=False)
        return os.lstat(name, dir_fd=parent)

    def entry(self, descent: Descent, name: bytes, entry: Entry) -> None:
        """Write any entry under a name in the present directory; skipped ones are left out."""
        if entry.kind == DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=descent.fd)
            descent.enter(name)
            self.tree(descent, entry.payload)
            descent.leave()
        elif entry.kind == SYMLINK:
            self.link(descent.fd, name, entry)
        elif entry.kind != SKIPPED:
            self.file(descent.fd, name, entry)

    def tree(self, descent: Descent, digest: bytes) -> Node:
        """Fill the present, empty directory with a tree, its own mode included.

        With a crew, files may still be on their way when this returns: wait for it before the tree is used.

        Returns:
            The tree's node for an index, so that its first checkpoint need not read it. No file of it is known to be
            safe from a change within the same tick (:func:`server.checkpoints.index.distrust_recent`).
        """
        frames = [self._begun(descent, digest)]
        while True:
            frame = frames[-1]
            below = next(frame.directories, None)
            if below is not None:
                os.mkdir(below.name, 0o700, dir_fd=descent.fd)
                descent.enter(below.name, 0o700)
                frames.append(self._begun(descent, below.payload))
                continue
            self._finish(descent, frame)
            frames.pop()
            if not frames:
                return frame.node
            descent.leave()
            frames[-1].node.children.append(frame.node)

    def _begun(self, descent: Descent, digest: bytes) -> _Frame:
        """Begin a directory: its files are written, or handed to the crew."""
        directory = self._trees.read(digest)
        entries = directory.entries
        kept = [entry for entry in entries if entry.kind != SKIPPED]
        node = Node(
            digest,
            directory.mode,
            sum([entry.files for entry in entries]),
            sum([entry.size for entry in kept]),
            sum([entry.skipped for entry in entries]),
            b"\0".join([entry.name for entry in kept]),
            b"",
        )
        directories = [entry for entry in kept if entry.kind == DIRECTORY]
        self.written += len(kept)
        frame = _Frame(node, iter(directories), is_leaf=not directories)
        if self._crew is not None and len(kept) - len(directories) >= _WORTH_A_HAND:
            parent = os.dup(descent.fd)
            try:
                frame.job = self._crew.give(self._fill, parent, kept, node, frame.is_leaf)
            except BaseException:
                os.close(parent)
                raise
        else:
            self._write(descent.fd, kept, node)
        return frame

    def _finish(self, descent: Descent, frame: _Frame) -> None:
        """Give a directory its owner and mode, when all is in it that makes use of our rights."""
        if frame.job is not None:
            if frame.is_leaf:
                return
            frame.job.result()
        if self._owner is not None:
            os.fchown(descent.fd, self._owner, self._owner)
        descent.set_mode(frame.node.mode)

    def _fill(self, parent: int, entries: Sequence[Entry], node: Node, is_leaf: bool) -> None:
        """A job of the crew: a directory's files and, where it has no directories, its owner and mode.

        Takes the descriptor over and closes it.
        """
        try:
            self._write(parent, entries, node)
            if is_leaf:
                if self._owner is not None:
                    os.fchown(parent, self._owner, self._owner)
                os.fchmod(parent, node.mode)
        finally:
            os.close(parent)

    def _write(self, parent: int, entries: Sequence[Entry], node: Node) -> None:
        rows: list[Row] = []
        check, file = self._stop.check, self.file
        for entry in entries:
            kind = entry.kind
            if kind == DIRECTORY:
                rows.append(DIRECTORY_ROW)
                continue
            check()
            rows.append(row_of((self.link if kind == SYMLINK else file)(parent, entry.name, entry)))
        node.rows = pack_rows(rows)


@dataclass
class _Frame:
    """A directory that is being written."""

    node: Node
    directories: Iterator[Entry]
    is_leaf: bool
    job: Future[None] | None = None
