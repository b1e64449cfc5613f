"""Which server processes of one home are alive.

Every server holds an exclusive lock on a file of its own for as long as it lives. The kernel gives the lock back when
the process dies, whatever killed it, so a free lock is proof of death and needs no time-out. On another host or in
another home (a shared Postgres) only the heartbeat in the store can tell.

The file names the server's run directory, where its sockets are, before that is made: whoever finds the lock free
removes both.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Final

from server.models import ServerRecord

HEARTBEAT_S: Final = 5.0
"""How often a server says that it lives."""

HEARTBEAT_LOST: Final = timedelta(seconds=60)
"""A server of another place that was silent for so long is dead."""

SHORTEST_TEMPORARY: Final = Path("/tmp")  # noqa: S108 - a directory of our own is made in it
"""Taken where the temporary directory of the environment is too long for a socket in it."""

_MAX_RUN_PATH: Final = 80
"""Bytes of the run directory's path: that of a socket in it must stay below 108 (unix(7))."""

_RUN_DIRECTORY: Final = re.compile(r"rookery-[0-9a-f]{16}")
_MAX_LOCK_BYTES: Final = 8192
_NAME: Final = ".name"
"""File in the directory of locks, with its name."""


class Leases:
    """This server's own lock, and a look at the others'.

    Args:
        home: the home that the servers share.
        server_id: this server.
    """

    def __init__(self, home: Path, server_id: str) -> None:
        self.server_id = server_id
        self.host = socket.gethostname()
        self._directory = home / "servers"

    @contextmanager
    def hold(self) -> Iterator[Path]:
        """Hold this server's lock, and have a run directory for its sockets, which only this user may enter.

        The directory does not lie in the home, because a socket's path must be short.

        Raises:
            OSError: the home or the temporary directory cannot be written.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, run = self._path(self.server_id), _new_run_directory()
        descriptor = _locked(path)
        try:
            os.write(descriptor, os.fsencode(f"{self.host}\n{run}"))
            run.mkdir(mode=0o700)
            try:
                yield run
            finally:
                _remove_run_directory(run)
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    @cached_property
    def place(self) -> str:
        """This host and this home, as rows of servers name them: where a server's lock can be looked at.

        The home has a name of its own, for one host may have several, and two containers may call their host the same.

        Raises:
            OSError: the home cannot be written.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return f"{self.host} {_name_of(self._directory)}"

    def alive(self, server: ServerRecord) -> bool:
        """Whether a server lives."""
        if server.id == self.server_id:
            return True
        # A row of an earlier version names the host alone.
        if server.host not in (self.place, self.host):
            return server.silent_for < HEARTBEAT_LOST
        return self.held(server.id)

    def held(self, server_id: str) -> bool:
        """Whether a process of this host holds a server's lock; also where that cannot be told."""
        try:
            descriptor = os.open(self._path(server_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            # No proof of death: this process may have too many files open.
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def sweep(self) -> None:
        """Remove the lock files of dead servers of this host, with their run directories. Never raises."""
        for path in self._directory.glob("*.lock"):
            with contextlib.suppress(OSError):
                self._sweep(path)

    def _sweep(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            host, _, run = os.fsdecode(os.read(descriptor, _MAX_LOCK_BYTES)).partition("\n")
            # One without content died before it had anything to leave.
            if host not in ("", self.host):
                return
            if run:
                _remove_run_directory(Path(run))
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def _path(self, server_id: str) -> Path:
        return self._directory / f"{server_id}.lock"


def _name_of(directory: Path) -> str:
    """The name that the first server gave to this directory."""
    path = directory / _NAME
    while not path.exists():
        own = directory / f"{_NAME}-{secrets.token_hex(8)}"
        own.write_text(secrets.token_hex(8))
        # Whole or not at all, and by one alone.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(own)
        own.unlink()
    return path.read_text()


def _locked(path: Path) -> int:
    """A new file, locked. One that was swept between being made and being locked is made again."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def _new_run_directory() -> Path:
    """A path for a run directory, in the temporary directory as far as that is short enough."""
    run = Path(tempfile.gettempdir()) / f"rookery-{secrets.token_hex(8)}"
    return run if len(os.fsencode(run)) <= _MAX_RUN_PATH else SHORTEST_TEMPORARY / run.name


def _remove_run_directory(path: Path) -> None:
    """Remove a run directory, if it is one of ours: by name, by owner, and no link."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if ours and _RUN_DIRECTORY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
