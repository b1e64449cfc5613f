"""Which server processes of one home are alive.

Every server holds an exclusive lock on a file of its own for as long as it lives. The kernel gives the lock back when
the process dies, whatever killed it, so a free lock is proof of death and needs no time-out. On another host (a shared
Postgres) only the heartbeat in the store can tell.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from server.clock import Clock
from server.models import ServerRecord

HEARTBEAT_S: Final = 5.0
"""How often a server says that it lives."""

HEARTBEAT_LOST: Final = timedelta(seconds=60)
"""A server of another host that was silent for so long is dead."""


class Leases:
    """This server's own lock, and a look at the others'.

    Args:
        home: the home that the servers share.
        server_id: this server.
    """

    def __init__(self, home: Path, server_id: str, clock: Clock) -> None:
        self.server_id = server_id
        self.host = socket.gethostname()
        self._directory = home / "servers"
        self._clock = clock

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold this server's lock.

        Raises:
            OSError: the home cannot be written.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(self.server_id)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def alive(self, server: ServerRecord) -> bool:
        """Whether a server lives."""
        if server.id == self.server_id:
            return True
        if server.host != self.host:
            return self._clock.now() - server.heartbeat_at < HEARTBEAT_LOST
        try:
            descriptor = os.open(self._path(server.id), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def forget(self, server_id: str) -> None:
        """Remove a dead server's lock file."""
        self._path(server_id).unlink(missing_ok=True)

    def _path(self, server_id: str) -> Path:
        return self._directory / f"{server_id}.lock"
