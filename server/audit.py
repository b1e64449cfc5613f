"""The audit of decisions, written behind the calls: a decision never waits for the database.

Rows are gathered for a moment and written together. While they cannot be written they wait in memory; when too many
wait, decisions are refused, for an agent must not act unrecorded for long.
"""

from __future__ import annotations

from typing import Final

import anyio
import structlog

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
    """Takes decisions and writes them. One for each process."""

    def __init__(self, store: Store) -> None:
        self._store = store
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
        """Keep a decision; it is in the store a moment later."""
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
                    log.error("audit was not written whole", lost=len(self._waiting), error=str(error))
