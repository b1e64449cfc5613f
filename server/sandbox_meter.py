"""Meters how long a session's sandbox runs: lines of the ledger beside those of its model requests.

A line is written every :data:`STRETCH_S` seconds and at the end. What a server that dies did not come to write, whoever
cleans up after it writes (:meth:`Store.charge_lost <server.store.ledger.Ledger.charge_lost>`), because the sandbox is
entered in the store while it runs. Time is measured by the monotonic clock: a wall clock that jumps makes no sandbox
dearer (row B08).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import structlog

from server.errors import RookeryError
from server.models import NANO_USD, RunningSandbox, SandboxTime, SessionRecord
from server.services import Services
from server.store.running_sandboxes import STRETCH_S

log = structlog.get_logger(__name__)

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
        self._running: RunningSandbox | None = None
        self._since = 0.0
        self._entered = False
        self._unwritten: SandboxTime | None = None
        self._one_at_a_time = anyio.Lock()

    def start(self) -> None:
        """The sandbox runs from now on."""
        self._since = anyio.current_time()
        self._running = RunningSandbox(
            session_id=self._session.id,
            line_id=self._services.clock.identifier("sbx"),
            owner=self._services.server_id,
            principal=self._session.principal,
            root_id=self._session.root_id,
            kind=self._session.sandbox_kind,
            since=self._services.clock.now(),
            nano_usd_per_s=self._nano_usd_per_s,
            lasts_s=self._services.provider_of(self._session).capabilities.lasts_s,
        )

    async def serve(self) -> None:
        """Enter the sandbox in the store, then write a line for each stretch, until cancelled."""
        await self._attempt(self._enter)
        while True:
            await anyio.sleep(STRETCH_S)
            await self._attempt(self._write)
            if await self._is_spent():
                await self._overspent()

    async def mark(self) -> None:
        """Write down what has run so far, where it costs money: a turn that ends shows all that it cost."""
        if self._nano_usd_per_s:
            await self._attempt(self._write)

    async def close(self) -> None:
        """Write the last line, whatever is cancelled around."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(LAST_LINE_S):
            await self._attempt(self._write_last)
        self._running = None

    async def _attempt(self, step: Callable[[RunningSandbox], Awaitable[None]]) -> None:
        """Take a step, alone. Nothing is lost where it fails: the next one makes up for it."""
        async with self._one_at_a_time:
            if self._running is None:
                return
            try:
                await step(self._running)
            except RookeryError as error:
                log.warning("sandbox time could not be written", session_id=self._session.id, error=str(error))

    async def _enter(self, running: RunningSandbox) -> None:
        if not self._entered:
            await self._services.store.enter_sandbox(running)
            self._entered = True

    async def _write(self, running: RunningSandbox) -> None:
        # Before any line: an earlier server's time is charged up to where ours begins.
        await self._enter(running)
        await self._record(running)
        await self._record(self._cut(running))

    async def _write_last(self, running: RunningSandbox) -> None:
        await self._enter(running)
        await self._record(running)
        self._cut(running)
        await self._record(None)

    def _cut(self, running: RunningSandbox) -> RunningSandbox:
        """End the stretch; how the sandbox runs on.

        Its line is fixed from now on, with its id: if the writing fails, or is cancelled, the very same is written
        again, for it may have been written all the same.
        """
        now, wall = anyio.current_time(), self._services.clock.now()
        self._unwritten = running.line(wall, round((now - self._since) * 1000))
        line_id = self._services.clock.identifier("sbx")
        self._running = running = running.model_copy(update={"line_id": line_id, "since": wall})
        self._since = now
        return running

    async def _record(self, then: RunningSandbox | None) -> None:
        """Write the line that is to be written, if there is one."""
        if self._unwritten is not None:
            self._entered = await self._services.store.record_sandbox_time(self._unwritten, then)
            self._unwritten = None

    async def _is_spent(self) -> bool:
        if not self._nano_usd_per_s:
            return False
        try:
            left = (await self._services.store.standing(self._session.id)).remaining_nano_usd
        except RookeryError as error:
            log.warning("budget could not be read", session_id=self._session.id, error=str(error))
            return False
        return left is not None and left <= 0
