"""The janitor: makes the store and the machine agree, and never touches what a living server owns.

On start and then in rounds it looks both ways: sessions whose server died are told the truth (an open turn becomes
``interrupted`` and can be continued, a rewind is finished, half a fork is removed), and sandboxes, sockets, locks and
server rows that nobody owns any more are removed. Now and then it thins out old checkpoints, and removes the content
that none needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Set
from datetime import timedelta
from typing import Final, Protocol

import anyio
import structlog

from server.errors import ErrorCode, RookeryError
from server.launching.agents import Survivor, launch_options, open_sandbox, take_over
from server.leases import Leases
from server.models import EventKind, ServerRecord, SessionRecord, SessionState, StopReason, TurnRecord
from server.resting import release, seal_workspace
from server.sandboxes.base import Sandbox, SandboxProvider, SandboxSpec
from server.services import Services
from server.workspaces.healing import heal_workspace
from server.workspaces.snapshots import Snapshots, joined

log = structlog.get_logger(__name__)

ROUND_S: Final = 60.0
"""How often the janitor goes round, when no server dies."""

LOOK_S: Final = 5.0
"""How often it looks whether another server has died."""

THINNING_ROUNDS: Final = 30
"""Every so many rounds, and in the first, old checkpoints are thinned out."""

TAKE_OVER_S: Final = 60.0
"""Longest try to reach an agent that may have outlived its server, before the next one."""

MENDED_AT_ONCE: Final = 4
"""Sessions mended side by side."""

BUSY_S: Final = 5.0
"""How long it waits for somebody who is at a session, before it leaves that to the next round."""

LAST_LOOK_S: Final = 20.0
"""Longest look at the files that an interrupted turn changed."""

CUT_OFF: Final = (
    "The turn before this one was cut off because the server stopped. Its last step may be half done, and its end may "
    "be missing from this conversation: look at the files before you rely on what you remember of them."
)
"""What the agent is told before the prompt that follows."""


class Residents(Protocol):
    """What the janitor must know of the agents of its own process."""

    @property
    def actors(self) -> Mapping[str, object]:
        """The sessions that this process has actors for."""
        ...

    @property
    def reserved(self) -> Set[str]:
        """Sandboxes of this process that have no session yet."""
        ...

    def lock(self, session_id: str) -> anyio.Lock:
        """Held by whoever does something with a session."""
        ...


Revive = Callable[[SessionRecord, TurnRecord, Survivor], Awaitable[None]]


class Janitor:
    """Reconciles. Part of the registry.

    Args:
        residents: the agents of this process.
        revive: starts an actor that goes on with an agent that outlived its server; None: such agents are left alone,
            for a server that stays.
    """

    def __init__(self, services: Services, leases: Leases, residents: Residents, revive: Revive | None = None) -> None:
        self._services = services
        self._leases = leases
        self._residents = residents
        self._revive = revive

    async def serve(self) -> None:
        """Go round until cancelled."""
        if any(provider.capabilities.survives_host for provider in self._services.providers):
            await self._catch_up()
        for number in itertools.count():
            try:
                with anyio.move_on_after(ROUND_S):
                    await self._death()
                await self.reconcile()
                await self._sweep_sandboxes(away=True)
                await self.prune()
                if number % THINNING_ROUNDS == 0:
                    await self.thin_out()
            except RookeryError as error:
                log.warning("janitor's round failed", error=str(error))
                await anyio.sleep(LOOK_S)

    async def _catch_up(self) -> None:
        """Do what the start did not wait for. A failure is tried again in the next round."""
        try:
            await self.reconcile()
            await self._sweep_sandboxes(away=True)
        except RookeryError as error:
            log.warning("janitor's first round failed", error=str(error))

    async def _death(self) -> None:
        """Wait until another server has died."""
        # They are other processes: nothing here could set an event.
        while not await self._dead():  # noqa: ASYNC110
            await anyio.sleep(LOOK_S)

    async def _dead(self) -> set[str]:
        servers = await self._services.store.servers()
        return {server.id for server in servers if not self._leases.alive(server)}

    async def reconcile(self, *, away: bool = True) -> int:
        """Tell the truth about all that dead servers left; how many sessions were mended.

        Args:
            away: also about agents that may have outlived their server, for which the network is asked; no start of
                a server waits for that.
        """
        store = self._services.store
        dead = await self._dead()
        await self._services.audit.recover(self._leases.held)
        left = await store.unowned_work(dead | {self._services.server_id})
        left = [session for session in left if session.id not in self._residents.actors]
        left = [session for session in left if away or not self._lasts(session)]
        places, mended = anyio.Semaphore(MENDED_AT_ONCE), list[str]()

        async def mend(session_id: str) -> None:
            async with places:
                if await self._mend(session_id):
                    mended.append(session_id)

        async with anyio.create_task_group() as tasks:
            for session in left:
                tasks.start_soon(mend, session.id)
        await store.charge_lost(dead)
        for server_id in dead:
            await store.remove_server(server_id)
        self._leases.sweep()
        await self._sweep_sandboxes(away=False)
        return len(mended)

    async def _mend(self, session_id: str) -> bool:
        """Reconcile one session, unless somebody in this process stays at it; a failure is tried again next round."""
        lock = self._residents.lock(session_id)
        try:
            # Who just looks, or answers a question of it, is gone in a moment, and a round is a long time to lose.
            with anyio.fail_after(BUSY_S):
                await lock.acquire()
        except TimeoutError:
            return False
        try:
            return await self.reconcile_session(await self._services.store.session_for_server(session_id))
        except RookeryError as error:
            log.warning("session could not be mended", session_id=session_id, error=str(error))
            return False
        except Exception:
            # A fault of ours, with this session: it must not keep the others from being mended, nor a server's start.
            log.exception("session could not be mended", session_id=session_id)
            return False
        finally:
            lock.release()

    async def _sweep_sandboxes(self, *, away: bool) -> None:
        """Remove sandboxes that no session has, as a killed server leaves them.

        What a living server made it may just be about to use, or keep warm: that is its own to look after.

        Args:
            away: those that are not on this machine; no start of a server waits for them.
        """
        services = self._services
        for provider in services.providers:
            if provider.capabilities.survives_host is not away:
                continue
            try:
                await self._sweep_provider(provider)
            except RookeryError as error:
                if provider is services.providers.default and not away:
                    raise
                log.info("sandboxes cannot be listed", provider=provider.name, error=str(error))

    async def _sweep_provider(self, provider: SandboxProvider) -> None:
        """Remove one provider's sandboxes that no session has.

        Raises:
            RookeryError: ``sandbox_unavailable``: they cannot be listed.
        """
        services = self._services
        # In this order: whatever is listed was spoken for before it was made.
        found = await provider.owned()
        if not found:
            return
        in_use = {*self._residents.reserved, *services.scratch}
        known = await services.store.sandboxed_sessions()
        others = {server.id: server for server in await services.store.servers() if server.id != services.server_id}
        for reference in found:
            name, maker = str(reference.get("id")), str(reference.get("server") or "")
            if name in in_use:
                continue
            if name in known:
                await self._release_ended(provider, name)
                continue
            if maker != services.server_id and (self._lives(maker, others) if maker else bool(others)):
                continue
            spec = SandboxSpec(session_id=name, gateway_socket=services.gateway.socket)
            try:
                sandbox = await provider.attach(reference, spec)
                await sandbox.destroy()
            except RookeryError as error:
                log.warning("orphaned sandbox stays", sandbox=name, error=str(error))

    def _lives(self, server_id: str, others: Mapping[str, ServerRecord]) -> bool:
        """Whether another server is at work: by its row, or by its lock if it was struck off by mistake."""
        row = others.get(server_id)
        return self._leases.held(server_id) if row is None else self._leases.alive(row)

    async def _release_ended(self, provider: SandboxProvider, session_id: str) -> None:
        """End the sandbox of a session that ended while this could not be done, if it costs."""
        if provider.capabilities.host_workspace or session_id in self._residents.actors:
            return
        session = await self._services.store.session_for_server(session_id)
        if session.state.is_terminal:
            await release(self._services, session)

    async def reconcile_session(self, session: SessionRecord, *, asleep_too: bool = False) -> bool:
        """Mend one session that says it is at work or resident, and whose process is gone; whether it was so.

        One that sleeps over an approval has no process and is left alone, unless ``asleep_too`` (it is interrupted).
        The caller holds the session's lock.
        """
        store = self._services.store
        if session.id in self._residents.actors or session.state.is_terminal:
            return False
        if session.owner is None and not (session.state.is_busy or session.resident):
            return False
        if session.owner is None and not asleep_too and await self._sleeps(session):
            return False
        if session.owner not in (None, self._services.server_id):
            servers = {server.id: server for server in await store.servers()}
            owner = servers.get(session.owner)
            if owner is not None and self._leases.alive(owner):
                return False
        lasts = session.state.is_busy and self._lasts(session)
        if lasts and self._revive is None and not asleep_too:
            return False
        if not await store.claim(session.id, self._services.server_id, expect_owner=session.owner):
            return False
        current = await store.session_for_server(session.id)
        if current.turn == 0 and current.state is SessionState.STARTING:
            # A fork that was being filled: the original has all of it, and nobody was told of this one.
            await self.delete(await store.move(current.id, SessionState.FAILED, owner=None))
            return True
        if lasts and not asleep_too and await self._is_taken_over(current):
            return True
        sandbox = await self._healed(current)
        if current.state.is_busy and (asleep_too or not await self._sleeps(current)):
            await self._close_turn(current, sandbox)
        await seal_workspace(self._services, session.id)
        await store.update_session(session.id, owner=None, resident=False)
        return True

    def _lasts(self, session: SessionRecord) -> bool:
        """Whether the session's agent may have outlived its server."""
        try:
            return self._services.provider_of(session).capabilities.survives_host
        except RookeryError:
            # It can be looked for by a server that has its provider.
            return True

    async def _is_taken_over(self, session: SessionRecord) -> bool:
        """Go on with the very turn of a session whose agent outlived its server; False where there is none such.

        Raises:
            RookeryError: the agent may live and cannot be reached now: it is tried again.
        """
        turn = await self._services.store.turn(session.id, session.turn)
        if turn.ended_at is not None or self._revive is None:
            return False
        options = launch_options(session, self._services.policy_of(session), self._services.settings)
        try:
            with anyio.fail_after(TAKE_OVER_S):
                survivor = await take_over(self._services, session, options)
        except TimeoutError as error:
            raise RookeryError(
                ErrorCode.SANDBOX_UNAVAILABLE, "The sandbox cannot be reached; it is tried again.", retryable=True
            ) from error
        except RookeryError as error:
            if error.code is not ErrorCode.SANDBOX_LOST:
                raise
            return False
        if survivor is None:
            return False
        log.info("agent outlived its server and goes on", session_id=session.id, turn=turn.number)
        await self._revive(session, turn, survivor)
        return True

    async def _sleeps(self, session: SessionRecord) -> bool:
        """Whether a session's turn was put off for an approval: it needs no process."""
        if session.state is not SessionState.AWAITING_APPROVAL:
            return False
        turn = await self._services.store.turn(session.id, session.turn)
        return turn.ended_at is not None

    async def _healed(self, session: SessionRecord) -> Sandbox | None:
        """The session's sandbox, with no process left in it and no rewind half done; None where it cannot be had."""
        if session.sandbox is None:
            return None
        try:
            sandbox = await open_sandbox(self._services, session)
            await sandbox.stop()
            await heal_workspace(self._services, session, self._services.files(session.id, sandbox))
        except RookeryError as error:
            log.warning("sandbox could not be looked after", session_id=session.id, error=str(error))
            return None
        return sandbox

    async def _close_turn(self, session: SessionRecord, sandbox: Sandbox | None) -> None:
        """The open turn of a session whose process is gone: interrupted, with what was done."""
        store = self._services.store
        turn = await store.turn(session.id, session.turn)
        if turn.ended_at is not None:
            # It slept over a question; its end is written anew.
            await store.update_turn(session.id, turn.number, ended_at=None)
        text = "The server stopped in the midst of this turn. What was done is kept; continue_session carries on."
        await store.append_events(session.id, turn.number, [(EventKind.NOTICE, {"text": text})])
        ended = turn.model_copy(
            update={"stop_reason": StopReason.INTERRUPTED, "ended_at": self._services.clock.now(), "error": None}
        )
        ended = await self._with_work(await self._with_words(ended), session, sandbox)
        await store.expire_approvals(session.id)
        notice = joined((await store.session_for_server(session.id)).pending_notice, CUT_OFF)
        await store.end_turn(ended, to=SessionState.IDLE, pending_notice=notice)

    async def _with_words(self, turn: TurnRecord) -> TurnRecord:
        """The turn with the agent's last words in it, and the number of calls that were denied."""
        events = await self._services.store.events(
            turn.session_id, kinds=[EventKind.TEXT, EventKind.DENIAL], limit=1_000_000
        )
        own = [event for event in events if event.turn == turn.number]
        words = [event.data for event in own if event.kind is EventKind.TEXT and "subagent" not in event.data]
        denied = {str(event.data.get("id")) for event in own if event.kind is EventKind.DENIAL}
        text = str(words[-1].get("text", "")) if words else ""
        return turn.model_copy(update={"text": text, "denials": len(denied)})

    async def _with_work(self, turn: TurnRecord, session: SessionRecord, sandbox: Sandbox | None) -> TurnRecord:
        """The turn with its last checkpoint and the files that it changed, as far as they can be found out in time."""
        if sandbox is None:
            return turn
        snapshots = Snapshots(self._services, session)
        with anyio.move_on_after(LAST_LOOK_S):
            try:
                snapshots.attach(self._services.files(session.id, sandbox))
                return await snapshots.end_of(turn)
            except RookeryError as error:
                log.warning("interrupted turn has no last checkpoint", session_id=session.id, error=str(error))
        return turn

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
        await self._services.checkpoints.forget(session.id)
        await self._services.store.delete_session(session.principal, session.id)

    async def thin_out(self) -> int:
        """Forget checkpoints beyond those that are kept, and remove content that none needs; how many bytes it held.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        store = self._services.store
        surplus = await store.surplus_checkpoints(self._services.settings.checkpoints_kept)
        if surplus:
            await store.delete_checkpoints(surplus)
        return await self._services.checkpoints.collect_garbage(await store.trees_in_use())

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
