"""Writes ledger entries so that none is lost without a word (rows G03, G04)."""

from __future__ import annotations

from typing import Final, Protocol

import anyio
import structlog

from server.gateway.grants import Grant
from server.models import LedgerEntry

PAUSES_S: Final = (0.05, 0.5)
"""Pauses between the attempts."""

ENOUGH_S: Final = 30.0
"""A write that failed only after so long is not tried again at once: an agent's end waits for it. It is tried before
the grant's next request."""

_log = structlog.get_logger(__name__)


class LedgerWriter(Protocol):
    """Where model requests are written down."""

    async def record_request(self, entry: LedgerEntry) -> None:
        """Write one entry durably. Called again with the same entry (same ``id``) when it failed: write it once.

        How long it takes is bounded by the ledger, which alone can tell a write that waits for its turn behind others
        from one that fails.

        Raises:
            Exception: it could not be written.
        """
        ...


class Recorder:
    """Writes entries with bounded retries; keeps what could not be written with its grant, which stops then."""

    def __init__(self, ledger: LedgerWriter) -> None:
        self._ledger = ledger

    async def record(self, grant: Grant, entry: LedgerEntry) -> None:
        """Write an entry, whatever is cancelled around. An entry that cannot be written closes the grant's door."""
        began = anyio.current_time()
        with anyio.CancelScope(shield=True):
            await self._first(grant, entry)
            for pause in PAUSES_S:
                if entry not in grant.unrecorded:
                    return
                if anyio.current_time() - began > ENOUGH_S:
                    break
                await anyio.sleep(pause)
                await self._again(grant, entry)
        if entry in grant.unrecorded:
            _log.error("ledger_entry_not_written", entry=entry.model_dump(mode="json"))

    async def flush(self, grant: Grant) -> bool:
        """Try once more what could not be written; whether nothing is left."""
        for entry in list(grant.unrecorded):
            if not await self._again(grant, entry):
                return False
        return True

    async def _first(self, grant: Grant, entry: LedgerEntry) -> None:
        """The first attempt. While it lasts, the reservation stands for the entry, and the grant's door is open."""
        written = False
        try:
            written = await self._written(entry)
        finally:
            if not written:
                # A hard cancellation in the midst leaves it here, too, not nowhere.
                grant.unrecorded.append(entry)

    async def _again(self, grant: Grant, entry: LedgerEntry) -> bool:
        written = await self._written(entry)
        if written and entry in grant.unrecorded:
            grant.unrecorded.remove(entry)
        return written

    async def _written(self, entry: LedgerEntry) -> bool:
        try:
            await self._ledger.record_request(entry)
        except Exception as error:
            # Whatever the store raises: the entry is not known to be written.
            _log.warning("ledger_write_failed", entry_id=entry.id, error=repr(error))
            return False
        return True
