"""Meters how long a session's sandbox runs: lines of the ledger beside those of its model requests.

A line is written every :data:`STRETCH_S` seconds and at the end, so that a server that dies leaves at most one stretch
unwritten. Time is measured by the monotonic clock: a wall clock that jumps makes no sandbox dearer (row B08).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import anyio
import structlog

from server.errors import RookeryError
from server.models import NANO_USD, SandboxTime, SessionRecord
from server.services import Services

log = structlog.get_logger(__name__)

STRETCH_S: Final = 60.0

LAST_LINE_S: Final = 10.0
"""Longest that the end of a session waits for its last line."""


class SandboxMeter:
    """Follows one sandbox from :meth:`start` to :meth:`close`.

    Args:
        overspent: called when sandbox time has used up the session's budget.
    """

    def __init__(self, services: Services, session: SessionRecord, overspent: Callable[[], Awaitable[None]]) -> None:
        self._services = services
        self._session = session
        self._overspent = overspent
        self._nano_usd_per_s = round(services.settings.sandbox_usd_per_s * NANO_USD)
        self._since: float | None = None
        self._since_wall: datetime | None = None

    def start(self) -> None:
        """The sandbox runs from now on."""
        self._since, self._since_wall = anyio.current_time(), self._services.clock.now()

    async def serve(self) -> None:
        """Write a line for each stretch, until cancelled."""
        while True:
            await anyio.sleep(STRETCH_S)
            await self._write()
            if await self._is_spent():
                await self._overspent()

    async def mark(self) -> None:
        """Write down what has run so far, where it costs money: a turn that ends shows all that it cost."""
        if self._nano_usd_per_s:
            await self._write()

    async def close(self) -> None:
        """Write the last line, whatever is cancelled around."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(LAST_LINE_S):
            await self._write()
        self._since = None

    async def _write(self) -> None:
        since, since_wall = self._since, self._since_wall
        if since is None or since_wall is None:
            return
        # Moved on first: whoever else writes meanwhile, or whatever is cancelled, no stretch is written twice.
        self._since, self._since_wall = now, wall = anyio.current_time(), self._services.clock.now()
        milliseconds = round((now - since) * 1000)
        line = SandboxTime(
            id=self._services.clock.identifier("sbx"),
            principal=self._session.principal,
            session_id=self._session.id,
            root_id=self._session.root_id,
            kind=self._session.sandbox_kind,
            started_at=since_wall,
            ended_at=wall,
            milliseconds=milliseconds,
            nano_usd=-(-milliseconds * self._nano_usd_per_s // 1000),
        )
        try:
            await self._services.store.record_sandbox_time(line)
        except RookeryError as error:
            # Nothing is lost: the next line begins where this one would have.
            self._since, self._since_wall = since, since_wall
            log.warning("sandbox time could not be written", session_id=self._session.id, error=str(error))

    async def _is_spent(self) -> bool:
        if not self._nano_usd_per_s:
            return False
        try:
            left = (await self._services.store.standing(self._session.id)).remaining_nano_usd
        except RookeryError as error:
            log.warning("budget could not be read", session_id=self._session.id, error=str(error))
            return False
        return left is not None and left <= 0
