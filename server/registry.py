"""The registry: every session of this process, and the way to those of others.

It owns one task group; each resident session is one actor in it. Commands for a session are serialised by a lock of
that session; between processes the store decides (one compare-and-set for each move). A command for a session that
another live process owns goes through the inbox table.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio
import structlog
from anyio.abc import TaskGroup

from server.agent.launch import LaunchOptions
from server.agent.replay import was_prompted
from server.callers import Caller
from server.concurrency import background_tasks
from server.errors import ErrorCode, RookeryError
from server.files import write_file
from server.fleet import Fleet
from server.forking import Forking
from server.forwarding import Forwarding
from server.holding import Holding
from server.inbox import Leave, message_id_of
from server.inheritance import inherited
from server.janitor import Janitor
from server.launching.agents import Survivor
from server.leases import HEARTBEAT_S, Leases
from server.models import ApprovalRecord, CheckpointRecord, EventKind, SessionRecord, SessionState, TurnRecord
from server.permissions.answering import Answering
from server.policy_book import turns_of
from server.prompting import Prompting
from server.reading import SessionReader
from server.requests import PromptRequest, SpawnRequest
from server.resting import release, working_files
from server.services import Services
from server.spawning import Spawning
from server.tokens import Tokens
from server.views import Activity, Census, Deletion, RewindReport, WrittenFile
from server.workspaces.snapshots import joined

log = structlog.get_logger(__name__)

MAX_HANDOVERS: Final = 5
"""How often a command follows a session that one process lets go and another takes."""

EXPIRY_S: Final = 5.0
"""How often approvals are looked at whose time may be over."""

INTERRUPT_TIMEOUT_S: Final = 15.0
"""Longest wait for an interrupted turn to be over."""


class Registry(SessionReader):
    """Owns the sessions. Made by :func:`open_registry`."""

    def __init__(self, services: Services, leases: Leases, tasks: TaskGroup, *, visiting: bool = False) -> None:
        super().__init__(services)
        self.tokens = Tokens(services.store, services.clock)
        """The API tokens of the store."""
        self._fleet = Fleet(services, self._changes, tasks, self._wake_answered)
        self._leases = leases
        self.janitor = Janitor(services, leases, self._fleet, None if visiting else self._go_on)
        self._forwarding = Forwarding(services, leases, self._serve_command)
        self._answering = Answering(services, self._resume)
        self._spawning = Spawning(services, self._fleet)
        self._prompting = Prompting(services, self._fleet, self.janitor)
        self._holding = Holding(services, self._fleet, self._forwarding)
        self._forking = Forking(
            services,
            self._fleet,
            self._forwarding,
            self._holding,
            self._undo,
            self._prompting,
            partial(self.end, delete=True),
        )

    # --- starting ---------------------------------------------------------------------------------------------

    async def spawn(
        self, principal: str, request: SpawnRequest, *, token_id: str | None = None, parent_id: str | None = None
    ) -> str:
        """Start a session; its id, once it is durable and its sandbox exists.

        The same ``request_id`` from the same principal gives the session that it gave first, also when two calls race.
        With ``parent_id`` it is a child of that session: beneath its policy, and counted by its limits.

        Raises:
            RookeryError: ``invalid_argument``, ``too_many_sessions``, ``model_auth_failed``, ``sandbox_unavailable``,
                ``storage_unavailable``; with a parent ``session_not_found``, ``session_ended``, ``policy_denied``.
        """
        return await self._spawning.spawn(principal, request, token_id=token_id, parent_id=parent_id)

    async def prompt(self, principal: str, session_id: str, request: PromptRequest) -> int:
        """Start the session's next turn; its number. An already seen ``request_id`` gives the turn that it gave first.

        Raises:
            RookeryError: ``session_not_found``, ``session_busy``, ``session_ended``, ``invalid_argument`` (a cap below
                what is spent), ``too_many_sessions``, ``model_auth_failed``, ``storage_unavailable``.
        """
        session, result = await self._elsewhere(principal, session_id, "prompt", request.model_dump())
        if result is not None:
            return int(result["turn"])
        async with self._fleet.lock(session_id):
            return await self._prompting.begin(session, request)

    # --- undoing ----------------------------------------------------------------------------------------------

    async def create_checkpoint(self, principal: str, session_id: str, label: str = "") -> CheckpointRecord:
        """Take a checkpoint of an idle session.

        Raises:
            RookeryError: ``session_not_found``, ``session_busy``, ``session_ended``, ``sandbox_lost``,
                ``storage_unavailable``.
        """
        async with self._holding.resting(principal, session_id) as session:
            return await self._undo.checkpoint(session, label)

    async def rewind(
        self, principal: str, session_id: str, checkpoint_id: str, *, dry_run: bool, conversation: bool
    ) -> RewindReport:
        """Take a session's files, and its conversation if asked, back to a checkpoint; a dry run only tells.

        Raises:
            RookeryError: ``session_not_found``, ``session_busy``, ``session_ended``, ``checkpoint_not_found``,
                ``sandbox_lost``, ``storage_unavailable``.
        """
        async with self._holding.resting(principal, session_id, asleep=not dry_run) as session:
            checkpoint = await self._undo.find(session, checkpoint_id)
            return await self._undo.rewind(session, checkpoint, dry_run=dry_run, conversation=conversation)

    async def fork(
        self,
        principal: str,
        session_id: str,
        *,
        prompt: str | None,
        checkpoint_id: str | None,
        count: int,
        request_id: str | None = None,
    ) -> list[str]:
        """New sessions with the files and the conversation of a checkpoint; their ids. The original is not touched.

        See :meth:`server.forking.Forking.fork`.

        Raises:
            RookeryError: ``session_not_found``, ``checkpoint_not_found``, ``invalid_argument``,
                ``too_many_sessions``, ``sandbox_unavailable``, ``storage_unavailable``.
        """
        return await self._forking.fork(
            principal,
            session_id,
            prompt=prompt,
            checkpoint_id=checkpoint_id,
            count=count,
            request_id=request_id,
        )

    async def write_file(self, principal: str, session_id: str, path: str, data: bytes) -> WrittenFile:
        """Write a file into an idle session's workspace; the agent is told before its next prompt.

        Raises:
            RookeryError: ``session_not_found``, ``session_busy``, ``session_ended``, ``invalid_argument``,
                ``storage_unavailable``.
        """
        # A live agent has its notice already; only a fresh one reads this.
        async with self._holding.resting(principal, session_id, asleep=True) as session:
            files = await working_files(self._services, session)
            shown, created = await write_file(files, path, data)
            notice = joined(session.pending_notice, f"The file {shown} was written from outside.")
            await self._services.store.update_session(session_id, pending_notice=notice)
            text = f"The file {shown} was written from outside ({len(data):,} bytes)."
            await self._services.store.append_events(session_id, session.turn, [(EventKind.NOTICE, {"text": text})])
        return WrittenFile(session_id=session_id, path=shown, size=len(data), created=created)

    # --- stopping ---------------------------------------------------------------------------------------------

    async def interrupt(self, principal: str, session_id: str) -> None:
        """Stop the present turn, if there is one, and wait until it has stopped.

        Raises:
            RookeryError: ``session_not_found``, ``timeout`` when it did not stop in time.
        """
        session, result = await self._elsewhere(principal, session_id, "interrupt", {})
        if result is not None:
            return
        async with self._fleet.lock(session_id):
            actor = self._fleet.actors.get(session_id)
            if actor is None:
                session = await self._services.store.session(principal, session_id)
                await self.janitor.reconcile_session(session, asleep_too=True)
                return
            await actor.stop_turn()
        with anyio.move_on_after(INTERRUPT_TIMEOUT_S):
            while (current := await self._services.store.session(principal, session_id)).state.is_busy:
                seen = await self._services.store.last_seq(current.id)
                await self._changes.wait([session_id], {session_id: seen}, 1.0)
            return
        raise RookeryError(
            ErrorCode.TIMEOUT, "The turn is being stopped but has not stopped yet; call get_session in a moment."
        )

    async def end(self, principal: str, session_id: str, *, delete: bool, descendants: bool = False) -> Deletion:
        """End a session for good; with ``delete`` also remove its files, transcript and events (not its costs).

        With ``descendants`` all that it spawned, and they in turn, are ended first, those furthest down before others;
        then what was spawned meanwhile.

        Raises:
            RookeryError: ``session_not_found``, ``storage_unavailable``.
        """
        below: list[str] = []
        if descendants:
            await self._services.store.session(principal, session_id)
            await self._end_below(principal, session_id, below)
        session, result = await self._elsewhere(principal, session_id, "end", {})
        if result is None:
            async with self._fleet.lock(session_id):
                await self._end_here(session)
        # Who has ended spawns no more, so this comes to an end, after as many rounds as there are generations.
        while descendants and await self._end_below(principal, session_id, below):
            pass
        if delete:
            # The last first: what is below is found by way of what is above.
            for one in (*reversed(below), session_id):
                await self.janitor.delete(await self._services.store.session(principal, one))
        return Deletion(session_id=session_id, state=SessionState.ENDED, deleted=delete, descendants_ended=len(below))

    async def _end_below(self, principal: str, session_id: str, ended: list[str]) -> bool:
        """End what descends from a session and is not among ``ended``, which takes it; whether there was anything."""
        found = [one for one in await self._services.store.descendants(session_id) if one not in ended]
        for one in reversed(found):
            await self.end(principal, one, delete=False)
        ended += found
        return bool(found)

    async def inherited(self, parent: SessionRecord, request: SpawnRequest) -> SpawnRequest:
        """A request for a child of a session: see :func:`server.inheritance.inherited`."""
        current = await self._services.store.session(parent.principal, parent.id)
        return await inherited(self._services, current, request)

    async def descends(self, session_id: str, ancestor_id: str) -> bool:
        """Whether a session was spawned by another, or by one that was, and so on."""
        return await self._services.store.descends(session_id, ancestor_id)

    async def _end_here(self, session: SessionRecord) -> None:
        store = self._services.store
        if not await self._fleet.dismiss(session.id, Leave.END):
            await self.janitor.reconcile_session(session, asleep_too=True)
        current = await store.session(session.principal, session.id)
        if current.state is not SessionState.ENDED:
            now = self._services.clock.now()
            current = await store.move(session.id, SessionState.ENDED, ended_at=now, owner=None, resident=False)
        await release(self._services, current)

    # --- approvals --------------------------------------------------------------------------------------------

    async def list_approvals(self, principal: str, session_id: str | None = None) -> list[ApprovalRecord]:
        """The principal's open questions, oldest first.

        Raises:
            RookeryError: ``session_not_found``.
        """
        return await self._answering.pending(principal, session_id)

    async def answer_approval(
        self,
        principal: str,
        approval_id: str,
        *,
        allow: bool,
        note: str = "",
        by: str | None = None,
        wake: bool = True,
    ) -> ApprovalRecord:
        """Answer a question, once; a session that sleeps over it is woken and the very call goes on.

        A process that is about to end answers with ``wake=False`` and leaves the waking to a server of the home.

        Raises:
            RookeryError: ``approval_not_found``, ``approval_expired``, ``invalid_argument``.
        """
        approval = await self._answering.answer(principal, approval_id, allow=allow, note=note, by=by or principal)
        if wake and approval.session_id not in self._fleet.actors:
            await self._wake_answered(approval.session_id)
        return approval

    async def _wake_answered(self, session_id: str) -> None:
        async with self._fleet.lock(session_id):
            try:
                await self._answering.resume_if_answered(session_id)
            except RookeryError as error:
                if error.code is not ErrorCode.SESSION_NOT_FOUND:
                    log.warning("session could not be woken by its answer", session_id=session_id, error=str(error))

    async def _go_on(self, session: SessionRecord, turn: TurnRecord, survivor: Survivor) -> None:
        """Take up the turn of an agent that outlived its server."""
        taken_up = survivor.live.put_off
        # One that was started to take up a call that was put off is never sent the prompt of that turn.
        needs_none = taken_up is not None and taken_up.turn == turn.number
        resumed = needs_none or was_prompted(survivor.told, message_id_of(turn))
        self._fleet.start(session, self._services.policy_of(session), turn, resumed=resumed, survivor=survivor)

    async def _resume(self, session: SessionRecord, turn: TurnRecord) -> None:
        self._fleet.start(session, self._services.policy_of(session), turn, resumed=True)

    def failed(self, code: ErrorCode) -> None:
        """Note that a call was answered with an error, for the metrics."""
        self._services.metrics.failed(code)

    async def census(self) -> Census:
        """What there is of everybody, for the operator."""
        states, waiting = await self._services.store.census()
        return Census(states=states, approvals_waiting=waiting, agents=len(self._fleet.actors))

    async def caller_of_token(self, secret: str) -> Caller | None:
        """Who shows this API token; None when it is not good.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        return await self.tokens.caller(secret)

    async def prune(self) -> int:
        """Delete ended sessions whose retention is over; how many."""
        return await self.janitor.prune()

    # --- other processes --------------------------------------------------------------------------------------

    async def _elsewhere(
        self, principal: str, session_id: str, kind: str, payload: dict[str, Any]
    ) -> tuple[SessionRecord, dict[str, Any] | None]:
        """The session, and what the other living process that holds it answered; None when this one may act.

        Raises:
            RookeryError: ``session_not_found``, what the other process answered, ``timeout``.
        """
        for _ in range(MAX_HANDOVERS):
            session = await self._services.store.session(principal, session_id)
            if not await self._forwarding.belongs_elsewhere(session):
                return session, None
            result = await self._forwarding.send(session, kind, payload)
            if result is not None:
                return session, result
        raise RookeryError(
            ErrorCode.TIMEOUT, "The session went from one server process to another. Try again.", retryable=True
        )

    async def _serve_command(self, session: SessionRecord, kind: str, payload: dict[str, object]) -> dict[str, object]:
        """Carry out what another process asked of a session of ours."""
        match kind:
            case "prompt":
                async with self._fleet.lock(session.id):
                    return {"turn": await self._prompting.begin(session, PromptRequest.model_validate(payload))}
            case "interrupt":
                await self.interrupt(session.principal, session.id)
            case "end":
                async with self._fleet.lock(session.id):
                    await self._end_here(session)
            case _:
                raise RookeryError(ErrorCode.INTERNAL, "The other server does not know this command; update it.")
        return {}

    # --- life -------------------------------------------------------------------------------------------------

    async def serve(self, *, visiting: bool) -> None:
        """Heartbeats, commands from other processes, the janitor's rounds; until cancelled.

        A visitor, such as a command that is over in a moment, does what it is asked and begins nothing by itself: it
        would wake an agent only to interrupt it.
        """
        if visiting:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._heartbeat)
                tasks.start_soon(self._forwarding.serve)
                tasks.start_soon(self._services.audit.serve)
            return
        default = self._services.policy(None)
        self._fleet.pool.want(
            LaunchOptions(
                tools=default.offered_tools(None),
                model=self._services.settings.model,
                max_turns=turns_of(default.limits, None),
                network=bool(default.network),
                intercept=default.intercepts,
            )
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._heartbeat)
            tasks.start_soon(self._forwarding.serve)
            tasks.start_soon(self.janitor.serve)
            tasks.start_soon(self._expire)
            tasks.start_soon(self._fleet.pool.serve)
            tasks.start_soon(self._services.audit.serve)

    async def _heartbeat(self) -> None:
        while True:
            try:
                if not await self._services.store.heartbeat(self._services.server_id):
                    # Others took it for dead and struck it off, as after a long stop on another host. What they mended
                    # is theirs; for all that comes it is there again, and nobody cleans up after it any more.
                    log.warning("this server was taken for dead; it is entered again")
                    await self._services.store.register_server(self._services.server_id, place=self._leases.place)
            except RookeryError as error:
                log.warning("heartbeat failed", error=str(error))
            await anyio.sleep(HEARTBEAT_S)

    async def _expire(self) -> None:
        while True:
            await anyio.sleep(EXPIRY_S)
            try:
                await self._answering.expire()
                for session_id in await self._answering.asleep():
                    await self._wake_answered(session_id)
            except RookeryError as error:
                log.warning("approvals could not be looked after", error=str(error))

    @property
    def activity(self) -> Activity:
        """What the agents of this process do now."""
        actors = self._fleet.actors.values()
        return Activity(resident=len(actors), working=sum(actor.idle_since is None for actor in actors))

    async def close(self) -> None:
        """Interrupt what runs, flush transcripts, end every agent. Bounded."""
        await self._fleet.close()


@asynccontextmanager
async def open_registry(services: Services, leases: Leases, *, visiting: bool = False) -> AsyncIterator[Registry]:
    """The registry of one server process, for as long as it serves; its lease is held by the caller.

    Args:
        visiting: see :meth:`Registry.serve`.

    Raises:
        RookeryError: ``storage_unavailable``; ``invalid_argument``: a policy or a hook is broken.
    """
    services.check()
    await services.store.register_server(services.server_id, place=leases.place)
    try:
        async with background_tasks() as tasks:
            registry = Registry(services, leases, tasks, visiting=visiting)
            await registry.janitor.reconcile(away=False)
            tasks.start_soon(partial(registry.serve, visiting=visiting))
            try:
                yield registry
            finally:
                with anyio.CancelScope(shield=True):
                    await registry.close()
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            await services.store.remove_server(services.server_id)
