"""Keeping a workspace below its size while the agent works, without a file system of its own.

The kernel bounds each single file (``RLIMIT_FSIZE``), but nothing that an unprivileged server may use bounds a
directory. So it is watched: once a second the free space of the file system tells whether the workspace *can* have
passed its limit; only then, or every quarter of a minute, it is measured by walking it. An agent can therefore be
over its limit for about a second, plus the time of one walk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio.to_thread

from server.sandboxes.tree import OPEN_DIRECTORY, TreeChangedError, measure

CHECK_INTERVAL_S: Final = 1.0
_FULL_INTERVAL_S: Final = 15.0
_REST: Final = 20.0
"""After a walk that took t seconds there is none for 20 t: watching costs at most a twentieth of one core."""


def measure_all(directories: Sequence[Path], limit: int) -> int:
    """Bytes on disk of several directories together, counted up to a little more than ``limit``.

    Raises:
        OSError: one cannot be opened.
        TreeChangedError: one was moved about meanwhile.
    """
    total = 0
    for path in directories:
        descriptor = os.open(path, OPEN_DIRECTORY)
        try:
            total += measure(descriptor, limit - total)
        finally:
            os.close(descriptor)
        if total > limit:
            break
    return total


class DiskWatch:
    """Watches the directories of one sandbox.

    Args:
        directories: what counts, all on one file system.
        limit: bytes. Directories that hold more already at the first look may hold that much, so that an agent can
            still be started to tidy up.
    """

    def __init__(self, directories: Sequence[Path], limit: int) -> None:
        self._directories = list(directories)
        self._limit = limit
        self._ceiling: int | None = None
        self._used = 0
        self._free = 0
        self._due = 0.0
        self._rest_until = 0.0

    async def exceeded(self) -> bool:
        """Whether the directories hold more than they may. Cheap when nothing grew; call it about once a second."""
        try:
            return await self._look()
        except (OSError, TreeChangedError):
            # The directories are being removed or rearranged: the next look will tell.
            return False

    async def _look(self) -> bool:
        now = time.monotonic()
        free = self._free_bytes()
        if self._ceiling is not None:
            grown = self._used + max(0, self._free - free)
            if now < self._rest_until or (grown <= self._ceiling and now < self._due):
                return False
        bound = self._limit if self._ceiling is None else self._ceiling
        # The first measure has no bound but this, because it may raise the ceiling.
        # A walk only reads: who no longer waits for it need not see its end.
        used = await anyio.to_thread.run_sync(
            measure_all, self._directories, bound if self._ceiling else 2 * bound, abandon_on_cancel=True
        )
        spent = time.monotonic() - now
        self._used, self._free = used, free
        self._due = now + spent + _FULL_INTERVAL_S
        self._rest_until = now + spent + _REST * spent
        if self._ceiling is None:
            self._ceiling = max(self._limit, used)
        return used > self._ceiling

    def _free_bytes(self) -> int:
        status = os.statvfs(self._directories[0])
        return status.f_bavail * status.f_frsize
