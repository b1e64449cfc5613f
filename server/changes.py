"""Waiting until something happens to a session.

Changes by this process wake the waiters at once; those by another process that shares the store are found by looking
again every :data:`POLL_S` seconds. One waiter looks for all of them, so that hundreds who wait cost what one costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import anyio

from server.store import Store

POLL_S: Final = 0.5
"""How often the store is asked for what other processes wrote."""


class Changes:
    """Wakes those who wait for sessions. One for each store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: dict[str, dict[anyio.Event, int]] = {}
        """By session: who waits, and the sequence number that it has seen."""
        self._looking = False
        self._any = anyio.Event()
        store.listeners.append(self._wake)

    def _wake(self, session_id: str) -> None:
        for event in self._waiters.pop(session_id, ()):
            event.set()
        self._any.set()
        self._any = anyio.Event()

    async def wait_any(self, timeout_s: float) -> None:
        """Return when this process has changed some session, or after ``timeout_s`` seconds."""
        with anyio.move_on_after(timeout_s):
            await self._any.wait()

    async def wait(self, session_ids: Sequence[str], after: Mapping[str, int], timeout_s: float) -> None:
        """Return when one of the sessions has an event newer than ``after`` says, or after ``timeout_s`` seconds.

        Args:
            session_ids: which sessions.
            after: session → sequence number already seen (0 where missing).
            timeout_s: longest wait.
        """
        with anyio.move_on_after(timeout_s):
            while True:
                event = anyio.Event()
                for session_id in session_ids:
                    self._waiters.setdefault(session_id, {})[event] = after.get(session_id, 0)
                try:
                    newest = await self._store.last_seqs(session_ids)
                    if any(newest.get(session_id, 0) > after.get(session_id, 0) for session_id in session_ids):
                        return
                    await self._woken(event)
                finally:
                    for session_id in session_ids:
                        waiting = self._waiters.get(session_id)
                        if waiting is not None:
                            waiting.pop(event, None)
                            if not waiting:
                                del self._waiters[session_id]

    async def _woken(self, event: anyio.Event) -> None:
        while not event.is_set():
            leads, self._looking = not self._looking, True
            try:
                with anyio.move_on_after(POLL_S):
                    await event.wait()
                if leads and not event.is_set():
                    await self._look()
            finally:
                if leads:
                    self._looking = False

    async def _look(self) -> None:
        """Wake all those for whom another process has written something."""
        newest = await self._store.last_seqs(list(self._waiters))
        for session_id, seq in newest.items():
            for event, seen in self._waiters.get(session_id, {}).items():
                if seq > seen:
                    event.set()
