"""Waiting until something happens to a session.

Changes by this process wake the waiters at once; those by another process that shares the store are found by looking
again every :data:`POLL_S` seconds.
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
        self._waiters: dict[str, set[anyio.Event]] = {}
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
                    self._waiters.setdefault(session_id, set()).add(event)
                try:
                    for session_id in session_ids:
                        if await self._store.last_seq(session_id) > after.get(session_id, 0):
                            return
                    with anyio.move_on_after(POLL_S):
                        await event.wait()
                finally:
                    for session_id in session_ids:
                        waiting = self._waiters.get(session_id)
                        if waiting is not None:
                            waiting.discard(event)
                            if not waiting:
                                del self._waiters[session_id]
