"""Writes ledger entries so that none is lost without a word (rows G03, G04)."""

from __future__ import annotations

from typing import Final, Protocol

import anyio
import structlog

from server.gateway.grants import Grant
from server.models import LedgerEntry

ATTEMPT_TIMEOUT_S: Final = 5.0
"""For one write: the store itself waits that long for a locked database."""

PAUSES_S: Final = (0.05, 0.5)
"""Pauses between the attempts. All in all an agent's last words wait at most some fifteen seconds."""

_log = structlog.get_logger(__name__)


class LedgerWriter(Protocol):
    """Where model requests are written down."""

    async def record_request(self, entry: LedgerEntry) -> None:
        """Write one entry durably. Called again with the same entry (same ``id``) when it failed: write it once.

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
        # Kept first: a hard cancellation in the midst then leaves it here, not nowhere.
        grant.unrecorded.append(entry)
        with anyio.CancelScope(shield=True):
            for pause in (*PAUSES_S, None):
                if await self._written(entry):
                    grant.unrecorded.remove(entry)
                    return
                if pause is not None:
                    await anyio.sleep(pause)
        _log.error("ledger_entry_not_written", entry=entry.model_dump(mode="json"))

    async def flush(self, grant: Grant) -> bool:
        """Try once more what could not be written; whether nothing is left."""
        for entry in list(grant.unrecorded):
            if not await self._written(entry):
                return False
            if entry in grant.unrecorded:
                grant.unrecorded.remove(entry)
        return True

    async def _written(self, entry: LedgerEntry) -> bool:
        try:
            with anyio.fail_after(ATTEMPT_TIMEOUT_S):
                await self._ledger.record_request(entry)
        except Exception as error:
            # Whatever the store raises: the entry is not known to be written.
            _log.warning("ledger_write_failed", entry_id=entry.id, error=repr(error))
            return False
        return True
