"""Where a home's daemon is found, and how one is sure that it is the right one. Standard library only.

The socket lies in a directory of the home that only its user may enter. It is reached through a descriptor of that
directory, for the path of a socket must be shorter than homes may be.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SOCKET: Final = "socket"
LOG: Final = "log"

LIFE_LOCK: Final = "lock"
"""Held by the daemon for as long as it lives: the kernel gives it back whatever kills it."""

START_LOCK: Final = "starting"
"""Held by the shim that starts a daemon, so that of several one does and the others find it."""

_POLL_S: Final = 0.05


class Place:
    """The directory of a home's daemon; made when it is not there.

    Args:
        home: the home.

    Raises:
        OSError: it cannot be made, or is not this user's own.
    """

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = home / "daemon"
        self.path.mkdir(mode=0o700, exist_ok=True)
        self._directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        status = os.fstat(self._directory)
        if status.st_uid != os.geteuid():
            os.close(self._directory)
            raise PermissionError(1, "belongs to another user", str(self.path))
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(self._directory, 0o700)

    def close(self) -> None:
        """Give up the directory's descriptor."""
        os.close(self._directory)

    @property
    def _address(self) -> str:
        return f"/proc/self/fd/{self._directory}/{SOCKET}"

    def connect(self) -> socket.socket | None:
        """A connection to the daemon; None when none listens.

        Raises:
            PermissionError: another user's process listens there.
        """
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self._address)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        if peer_uid(connection) != os.geteuid():
            connection.close()
            raise PermissionError(1, "another user's process listens there", str(self.path / SOCKET))
        return connection

    def listen(self) -> socket.socket:
        """Listen in the place of whatever was left there; the caller holds the life lock."""
        self.withdraw()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._address)
        os.chmod(SOCKET, 0o600, dir_fd=self._directory)
        listener.listen(128)
        return listener

    def withdraw(self) -> None:
        """Take the socket away, so that nobody finds a daemon that leaves."""
        try:
            os.unlink(SOCKET, dir_fd=self._directory)
        except FileNotFoundError:
            return

    def open_log(self) -> int:
        """A descriptor that appends to the daemon's log."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(LOG, flags, 0o600, dir_fd=self._directory)

    @contextmanager
    def locked(self, name: str, patience_s: float) -> Iterator[bool]:
        """Hold a lock, waiting for it; whether it was had in time."""
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        deadline = time.monotonic() + patience_s
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        yield False
                        return
                    time.sleep(_POLL_S)
                else:
                    yield True
                    return
        finally:
            os.close(descriptor)


def peer_uid(connection: socket.socket) -> int:
    """The user whose process is at the other end, by the kernel's word."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)
