"""The audit of decisions, written behind the calls: a decision never waits for the database.

Rows are gathered for a moment and written together; till then they are in a file, so that a server that is killed
loses none. While they cannot be written they wait; when too many wait, decisions are refused, for an agent must not
act unrecorded for long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import structlog

from server.audit.journal import AuditJournal, read_rows, retire
from server.errors import ErrorCode, RookeryError
from server.models import DecisionRecord
from server.store import Store

log = structlog.get_logger(__name__)

GATHER_S: Final = 0.05
"""How long rows are gathered before they are written together."""

RETRY_S: Final = 1.0
"""Pause after a write that failed."""

MAX_WAITING: Final = 5_000
"""Rows that may wait for a store that does not take them."""

CLOSE_S: Final = 5.0
"""Longest that the end waits for the last rows."""


class AuditTrail:
    """Takes decisions and writes them. One for each process.

    Args:
        store: where they go.
        journal: where they are on their way.
    """

    def __init__(self, store: Store, journal: AuditJournal) -> None:
        self._store = store
        self._journal = journal
        self._waiting: list[DecisionRecord] = []
        self._came = anyio.Event()
        self._writing = anyio.Lock()

    def check(self) -> None:
        """Refuse when the audit cannot keep up.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise RookeryError(
                ErrorCode.STORAGE_UNAVAILABLE, "The audit cannot be written, so nothing is allowed.", retryable=True
            )

    def add(self, entry: DecisionRecord) -> None:
        """Keep a decision: from now on it is not lost with this process, and it is in the store a moment later.

        Raises:
            RookeryError: ``storage_unavailable``; it must not be acted upon.
        """
        self._journal.append(entry)
        self._waiting.append(entry)
        self._came.set()

    async def flush(self) -> None:
        """Write what waits.

        Raises:
            RookeryError: ``storage_unavailable``; what waits is kept.
        """
        async with self._writing:
            entries = list(self._waiting)
            await self._store.record_decisions(entries)
            del self._waiting[: len(entries)]
            self._journal.trim(self._waiting)

    async def recover(self, lives: Callable[[str], bool]) -> int:
        """Write what servers of this home that were killed had still to write; how many rows. Never raises.

        Args:
            lives: whether a server is alive.
        """
        left = await anyio.to_thread.run_sync(self._journal.left_behind, lives)
        return sum([await self._recover(path) for path in left])

    async def _recover(self, path: Path) -> int:
        """Write one file's rows, which several servers may do at once; a failure is tried again by the next."""
        try:
            rows, whole = await anyio.to_thread.run_sync(read_rows, path)
            await self._store.record_decisions(rows)
            await anyio.to_thread.run_sync(partial(retire, path, whole=whole))
        except FileNotFoundError:
            # Another server was faster.
            return 0
        except (OSError, RookeryError) as error:
            log.warning("audit of a dead server could not be written", path=str(path), error=str(error))
            return 0
        if whole:
            log.info("audit of a dead server was written", rows=len(rows))
        else:
            log.error("audit of a dead server cannot be read whole; it is kept", kept=str(path.parent), rows=len(rows))
        return len(rows)

    async def serve(self) -> None:
        """Write what comes, until cancelled; then write the rest."""
        try:
            while True:
                await self._came.wait()
                self._came = anyio.Event()
                await anyio.sleep(GATHER_S)
                try:
                    await self.flush()
                except RookeryError as error:
                    log.warning("audit could not be written", waiting=len(self._waiting), error=str(error))
                    self._came.set()
                    await anyio.sleep(RETRY_S)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_S):
                try:
                    await self.flush()
                except RookeryError as error:
                    log.error("audit is written by the next server", waiting=len(self._waiting), error=str(error))
            self._journal.close(self._waiting)
