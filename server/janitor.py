"""The janitor: makes the store and the machine agree, and never touches what a living server owns.

On start and then in rounds it looks both ways: sessions whose server died are told the truth (an open turn becomes
``interrupted`` and can be continued), and sandboxes, locks and server rows that nobody owns any more are removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from datetime import timedelta
from typing import Final

import anyio
import structlog

from server.errors import ErrorCode, RookeryError
from server.launching import open_sandbox
from server.leases import Leases
from server.models import EventKind, SessionRecord, SessionState, StopReason
from server.sandboxes.base import SandboxSpec
from server.services import Services

log = structlog.get_logger(__name__)

ROUND_S: Final = 60.0
"""How often the janitor goes round."""


class Janitor:
    """Reconciles. Part of the registry.

    Args:
        resident: the sessions that this process has actors for; looked at, never changed.
        reserved: sandboxes of this process that have no session yet; looked at, never changed.
    """

    def __init__(self, services: Services, leases: Leases, resident: Mapping[str, object], reserved: Set[str]) -> None:
        self._services = services
        self._leases = leases
        self._resident = resident
        self._reserved = reserved

    async def serve(self) -> None:
        """Go round until cancelled."""
        while True:
            await anyio.sleep(ROUND_S)
            try:
                await self.reconcile()
                await self.prune()
            except RookeryError as error:
                log.warning("janitor's round failed", error=str(error))

    async def reconcile(self) -> int:
        """Tell the truth about all that dead servers left; how many sessions were mended."""
        store = self._services.store
        dead = {server.id for server in await store.servers() if not self._leases.alive(server)}
        mended = 0
        for session in await store.unowned_work(dead | {self._services.server_id}):
            mended += await self.reconcile_session(session)
        await store.charge_lost(dead)
        for server_id in dead:
            await store.remove_server(server_id)
            self._leases.forget(server_id)
        await self._sweep_sandboxes()
        return mended

    async def _sweep_sandboxes(self) -> None:
        """Remove sandboxes that no session has, as a killed server leaves them.

        Only while no other server lives: one that does may just be making a sandbox, or keep it warm.
        """
        services = self._services
        if len(await services.store.servers()) > 1:
            return
        known = await services.store.session_ids()
        for reference in await services.provider.owned():
            name = str(reference.get("id"))
            if name in known or name in self._reserved:
                continue
            spec = SandboxSpec(session_id=name, gateway_socket=services.gateway.socket)
            try:
                sandbox = await services.provider.attach(reference, spec)
                await sandbox.destroy()
            except RookeryError as error:
                log.warning("orphaned sandbox stays", sandbox=name, error=str(error))

    async def reconcile_session(self, session: SessionRecord, *, asleep_too: bool = False) -> bool:
        """Mend one session that says it is at work or resident, and whose process is gone; whether it was so.

        One that sleeps over an approval has no process and is left alone, unless ``asleep_too`` (it is interrupted).
        """
        store = self._services.store
        if session.id in self._resident or session.state.is_terminal:
            return False
        if session.state is SessionState.AWAITING_APPROVAL and session.owner is None and not asleep_too:
            return False
        if session.owner not in (None, self._services.server_id):
            servers = {server.id: server for server in await store.servers()}
            owner = servers.get(session.owner)
            if owner is not None and self._leases.alive(owner):
                return False
        if not await store.claim(session.id, self._services.server_id, expect_owner=session.owner):
            return False
        current = await store.session_for_server(session.id)
        if current.turn == 0 and current.state is SessionState.STARTING:
            # A fork that was being filled: the original has all of it, so there is nothing here to restore.
            await store.move(current.id, SessionState.FAILED)
        elif current.state.is_busy:
            await self._close_turn(current)
        await store.update_session(session.id, owner=None, resident=False)
        return True

    async def _close_turn(self, session: SessionRecord) -> None:
        """The open turn of a session whose process is gone: interrupted, with what was done."""
        store = self._services.store
        turn = await store.turn(session.id, session.turn)
        text = "The server stopped in the midst of this turn. What was done is kept; continue_session carries on."
        await store.append_events(session.id, turn.number, [(EventKind.NOTICE, {"text": text})])
        said = await store.events(session.id, kinds=[EventKind.TEXT], limit=1_000_000)
        words = [str(event.data.get("text", "")) for event in said if event.turn == turn.number]
        ended = turn.model_copy(
            update={
                "stop_reason": StopReason.INTERRUPTED,
                "text": words[-1] if words else "",
                "ended_at": self._services.clock.now(),
            }
        )
        await store.expire_approvals(session.id)
        await store.end_turn(ended, to=SessionState.IDLE)

    async def prune(self) -> int:
        """Delete ended sessions whose retention is over; how many."""
        age = timedelta(days=self._services.settings.retention_days)
        over = await self._services.store.ended_before(self._services.clock.now() - age)
        for session in over:
            await self.delete(session)
        return len(over)

    async def delete(self, session: SessionRecord) -> None:
        """Remove a session's files and rows; its ledger entries stay, for money is never lost.

        Raises:
            RookeryError: ``session_busy`` when it has not ended, ``storage_unavailable``.
        """
        if not session.state.is_terminal:
            raise RookeryError(ErrorCode.SESSION_BUSY, "Only an ended session can be deleted; end it first.")
        await self._destroy(session)
        await self._services.store.delete_session(session.principal, session.id)

    async def _destroy(self, session: SessionRecord) -> None:
        if session.sandbox is None:
            return
        try:
            sandbox = await open_sandbox(self._services, session)
            await sandbox.destroy()
        except RookeryError as error:
            if error.code is not ErrorCode.SANDBOX_LOST:
                raise
            log.info("sandbox was gone already", session_id=session.id)
