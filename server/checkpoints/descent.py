"""Going through a tree that an enemy may be changing, without ever following a link.

Every directory is opened relative to the descriptor of its parent with ``O_NOFOLLOW | O_DIRECTORY``; paths are never
put together, so they may be longer than the system's ``PATH_MAX``, and a directory that is swapped for a link between
two steps fails to open instead of leading elsewhere. Only the innermost directories are held open; on the way back a
closed one is opened again as ``..`` of its child and must be the very directory that was left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from server.checkpoints.work import TreeMovedError

WINDOW: Final = 64
"""Directories held open at once."""

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_OPEN_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

OWNER_READ: Final = 0o500
OWNER_ALL: Final = 0o700


def open_directory(name: str | bytes, parent: int) -> int:
    """Open the directory ``name`` of ``parent``; one that its owner may not read or write is opened up first.

    Raises:
        OSError: it is no directory (any more), or belongs to someone else.
    """
    try:
        return os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    except PermissionError:
        with unlocked(name, parent, stat.S_IFDIR, OWNER_ALL):
            return os.open(name, OPEN_DIRECTORY, dir_fd=parent)


@contextlib.contextmanager
def unlocked(name: str | bytes, parent: int, kind: int, bits: int) -> Iterator[None]:
    """Lend the owner permission ``bits`` on an entry of ``parent`` that we own, and take them back.

    The change goes through a handle on that very inode, so a link put in its place is not followed.

    Raises:
        PermissionError: it is not ours, or not of that ``kind``.
    """
    handle = os.open(name, _OPEN_HANDLE, dir_fd=parent)
    try:
        found = os.fstat(handle)
        if stat.S_IFMT(found.st_mode) != kind or found.st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, "not ours to open")
        path = Path(f"/proc/self/fd/{handle}")
        path.chmod(stat.S_IMODE(found.st_mode) | bits)
        try:
            yield
        finally:
            path.chmod(stat.S_IMODE(found.st_mode))
    finally:
        os.close(handle)


class Descent:
    """The directories from a root down to the present one.

    Args:
        root: descriptor of the root, taken over and closed by :meth:`close`.
        needs: permission bits that are needed on each directory. A server that is not root lends itself what is
            missing, and takes it back on leaving.
    """

    def __init__(self, root: int, needs: int = OWNER_ALL) -> None:
        self._needs = needs
        self._open: list[int | None] = [root]
        self._identity: dict[int, tuple[int, int]] = {}
        self._modes: dict[int, int] = {}
        self._lends = os.geteuid() != 0
        if self._lends:
            self._lend(stat.S_IMODE(os.fstat(root).st_mode))

    @property
    def fd(self) -> int:
        """Descriptor of the present directory."""
        top = self._open[-1]
        if top is None:
            raise TreeMovedError
        return top

    @property
    def depth(self) -> int:
        """0 in the root."""
        return len(self._open) - 1

    def enter(self, name: str | bytes, mode: int | None = None) -> int:
        """Go into a directory of the present one and return its descriptor.

        Args:
            mode: its permission bits if known.

        Raises:
            OSError: it cannot be opened, or is no directory.
        """
        fd = open_directory(name, self.fd)
        self._open.append(fd)
        if self._lends:
            self._lend(stat.S_IMODE(os.fstat(fd).st_mode) if mode is None else mode)
        far = len(self._open) - 1 - WINDOW
        if far > 0 and (old := self._open[far]) is not None:
            found = os.fstat(old)
            self._identity[far] = (found.st_dev, found.st_ino)
            os.close(old)
            self._open[far] = None
        return fd

    def _lend(self, mode: int) -> None:
        if mode & self._needs != self._needs:
            with contextlib.suppress(PermissionError):
                os.fchmod(self.fd, mode | self._needs)
                self._modes[self.depth] = mode

    def set_mode(self, mode: int) -> None:
        """Give the present directory permission bits, at the latest when it is left."""
        if self._lends and mode & self._needs != self._needs:
            self._modes[self.depth] = mode
        else:
            self._modes.pop(self.depth, None)
            os.fchmod(self.fd, mode)

    def leave(self) -> None:
        """Go back to the parent.

        Raises:
            TreeMovedError: the present directory was moved elsewhere meanwhile.
        """
        child = self.fd
        mode = self._modes.pop(self.depth, None)
        index = len(self._open) - 2
        try:
            if index >= 0 and self._open[index] is None:
                self._open[index] = parent = os.open("..", OPEN_DIRECTORY, dir_fd=child)
                found = os.fstat(parent)
                if (found.st_dev, found.st_ino) != self._identity.pop(index):
                    raise TreeMovedError
            if mode is not None:
                os.fchmod(child, mode)
        finally:
            os.close(child)
            self._open.pop()

    def close(self) -> None:
        """Close what is open, and take back what was lent as far as that can be reached. Idempotent."""
        with contextlib.suppress(OSError, TreeMovedError):
            while self._modes and self._open:
                self.leave()
        while self._open:
            fd = self._open.pop()
            if fd is not None:
                os.close(fd)
