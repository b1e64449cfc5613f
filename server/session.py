"""The session actor: one task that alone owns a live agent, from its wake to its sleep.

It reads one inbox: commands of the registry and what the agent says. Nothing else touches the agent, so nothing here
needs a lock. The actor lives while the session is resident; an idle session that hibernates has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import anyio
import structlog
from anyio.abc import TaskGroup
from claude_agent_sdk import ClaudeSDKError

from policies import Policy
from server.agent.agent import Agent
from server.changes import Changes
from server.concurrency import background_tasks
from server.errors import ErrorCode, RookeryError
from server.files import WorkspaceFiles
from server.inbox import (
    AgentLeft,
    AgentSaid,
    GatewaySaid,
    GoAway,
    Interrupt,
    Item,
    Leave,
    OpenTurn,
    Overspent,
    StartTurn,
)
from server.launching.agents import LiveAgent
from server.launching.placing import Placement
from server.models import SessionRecord, SessionState, TurnRecord
from server.permissions.authority import SessionAuthority
from server.resting import seal_files
from server.sandbox_meter import SandboxMeter
from server.services import Services
from server.telemetry.spans import present
from server.turns.conclusions import departure, failure_of, is_foreseen, start_failure
from server.turns.limits import TurnLimits
from server.turns.runner import TurnRunner
from server.workspaces.healing import heal_workspace
from server.workspaces.snapshots import Snapshots

log = structlog.get_logger(__name__)

INBOX_SIZE: Final = 256
"""Items that may wait for the actor; beyond that the agent is slowed down, not the memory filled."""

MAX_DETAIL: Final = 500
"""Longest cause of a failure in the log, in characters."""


class SessionActor:
    """Owns one session's agent. Make it, start ``run`` in the registry's task group, send it items."""

    def __init__(
        self,
        services: Services,
        session: SessionRecord,
        policy: Policy,
        changes: Changes,
        warm: LiveAgent | None = None,
        survivor: LiveAgent | None = None,
    ) -> None:
        self._services = services
        self._send, self._receive = anyio.create_memory_object_stream[Item](INBOX_SIZE)
        self._authority = SessionAuthority(services, session, changes)
        self._snapshots = Snapshots(services, session)
        self._meter = SandboxMeter(services, session, self._overspent)
        self._files: WorkspaceFiles | None = None
        self._gone = False
        self._begun = False
        self.placement = Placement(services, warm, survivor)
        self._turns = TurnRunner(
            services,
            session,
            TurnLimits(services, policy),
            authority=self._authority,
            snapshots=self._snapshots,
            meter=self._meter,
            placement=self.placement,
        )
        self.stopped = anyio.Event()
        """Set when the actor is gone and the store says so."""

    @property
    def session(self) -> SessionRecord:
        """The session as this server last wrote it."""
        return self._turns.session

    @property
    def idle_since(self) -> float | None:
        """Monotonic time since when it has nothing to do; None in a turn."""
        busy = self._turns.open is not None or not self._begun or self._receive.statistics().current_buffer_used
        return None if busy else self._turns.idle_since

    def start_turn(self, turn: TurnRecord) -> bool:
        """Hand an idle actor its next turn; False when it is leaving and takes none."""
        if self._turns.leaving is not None or self._gone:
            return False
        try:
            self._send.send_nowait(StartTurn(turn, trace=present()))
        except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return False
        return True

    async def stop_turn(self) -> None:
        """Interrupt the present turn, also one whose prompt was not sent yet."""
        await self._command(Interrupt())

    async def leave(self, why: Leave) -> None:
        """Ask the actor to interrupt what runs and go; ``stopped`` tells when it has gone."""
        await self._command(GoAway(why))

    async def _overspent(self) -> None:
        """Time in the sandbox has used the budget up."""
        try:
            await self._send.send(Overspent())
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("actor had left before its budget was spent", session_id=self.session.id)

    async def _command(self, item: Interrupt | GoAway) -> None:
        if self._turns.open is not None and not self._turns.open.prompted:
            self._turns.open.call_off()
        try:
            await self._send.send(item)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("actor had left before the command", session_id=self.session.id)

    # --- life -------------------------------------------------------------------------------------------------

    async def run(self, first: StartTurn) -> None:
        """Live: start the agent, run turns, leave. Never raises; all ends are written to the store."""
        self._turns.take(first)
        self._begun = True
        try:
            async with anyio.create_task_group() as tasks:
                try:
                    await self._live(tasks)
                finally:
                    tasks.cancel_scope.cancel()
        except Exception as error:
            failure = failure_of(error)
            self._log_failure(error, failure)
            if (turn := self._turns.open) is not None and turn.crash is None:
                turn.crash = failure
        finally:
            self._gone = True
            self._turns.let_go()
            self._take_unstarted()
            self._receive.close()
            with anyio.CancelScope(shield=True):
                for step in (self.placement.close, self._meter.close, self._settle):
                    try:
                        await step()
                    except Exception as error:
                        # It must not end the other agents of this process, which live beside this one.
                        self._log_failure(error, failure_of(error))
            self.stopped.set()

    def _log_failure(self, error: Exception, failure: RookeryError) -> None:
        """Say why the actor failed: in one line where the reason is known, with the trace where it is our fault."""
        if not is_foreseen(error):
            log.error("session actor failed", session_id=self.session.id, exc_info=error)
            return
        detail = (failure.detail or "")[:MAX_DETAIL]
        log.error("session actor failed", session_id=self.session.id, error=str(failure), detail=detail)
        log.debug("where the session actor failed", session_id=self.session.id, exc_info=error)

    def _take_unstarted(self) -> None:
        """A turn or an order to leave that reached the inbox too late must not be lost with it."""
        while True:
            try:
                item = self._receive.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
                return
            match item:
                case StartTurn() as start if self._turns.open is None:
                    self._turns.take(start).crash = departure(None)
                case GoAway(why):
                    self._turns.leaving = why
                case _:
                    pass

    async def _live(self, tasks: TaskGroup) -> None:
        async with AsyncExitStack() as stack:
            turns, first = self._turns, self._turns.open
            assert first is not None
            try:
                with first.span.current():
                    agent = await self._wake(tasks, stack, first)
            except (RookeryError, ClaudeSDKError, TimeoutError, OSError, ExceptionGroup) as error:
                first.crash = start_failure(error)
                return
            tasks.start_soon(self._listen, agent)
            await turns.begin()
            while turns.leaving is None or turns.open is not None:
                await turns.keep_limits()
                idle_until = turns.idle_since + self._services.settings.idle_s
                item: Item | None = None
                with anyio.move_on_at(idle_until if turns.open is None else turns.limits.next_look(turns.open)):
                    item = await self._receive.receive()
                if item is None:
                    await self._on_deadline()
                elif await self._handle(item):
                    return

    async def _on_deadline(self) -> None:
        if self._turns.open is not None:
            await self._turns.on_deadline(self._turns.open)
        elif not self._receive.statistics().current_buffer_used:
            self._turns.leaving = Leave.HIBERNATE

    async def _wake(self, tasks: TaskGroup, stack: AsyncExitStack, first: OpenTurn) -> Agent:
        """Bring the sandbox and the agent up, and take the turn's checkpoint meanwhile."""
        sandbox = await self.placement.sandbox_of(self.session)
        self._meter.start()
        tasks.start_soon(self._meter.serve)
        await heal_workspace(self._services, self.session, self._services.files(self.session.id, sandbox))
        # Of their own, as what was certain of the files ends with the agent's start.
        self._files = files = self._services.files(self.session.id, sandbox)
        self._snapshots.attach(files)
        self._authority.look_at(files)
        checkpointed = anyio.Event()

        async def checkpoint() -> None:
            await self._turns.checkpoint()
            checkpointed.set()

        async with background_tasks() as beside:
            beside.start_soon(checkpoint)
            up = await self._authority.next_up() if first.resumed else None
            live = await self.placement.agent_of(self.session, self._turns.limits.policy, sandbox, stack, up)
            if live.put_off is not None and live.put_off.turn == first.record.number:
                first.put_off = live.put_off
            await self._authority.restore()
            if not first.resumed:
                first.leftover = await self._authority.owes_a_call()
            if live.agent.alive:
                self._take_over(live)
            else:
                where = self._services.provider_of(self.session).capabilities
                async with self._services.starts.place(where, first.called_off) as placed:
                    if placed:
                        self._take_over(live)
                        await stack.enter_async_context(live.agent)
            await checkpointed.wait()
            if not live.agent.alive:
                raise departure(None)
        if self.session.state is not SessionState.STARTING:
            # With what it learned while it woke: the agent is told before its prompt.
            self._turns.session = await self._services.store.update_session(self.session.id, resident=True)
        return live.agent

    def _take_over(self, live: LiveAgent) -> None:
        """Make an agent this session's, before it runs: one that resumes asks for its deferred call at once."""
        session = self.session
        live.grant.terms = self._terms
        live.grant.tell = self._hear_gateway
        live.grant.bind(session_id=session.id, root_id=session.root_id, principal=session.principal)
        live.gate.authority = self._authority
        if live.delegation is not None:
            live.delegation.bind(session)
        if live.outlet is not None:
            live.outlet.allow(lambda: self._services.policy_of(session).egress, self._tell)
        self._turns.take_over(live.agent, live.grant)

    def _terms(self) -> Policy:
        """What the gateway holds the agent's model requests to.

        Raises:
            RookeryError: ``policy_denied``: none may be made now; ``invalid_argument``: the policy cannot be read.
        """
        if self._turns.open is not None and self._turns.open.holds_the_model:
            raise RookeryError(ErrorCode.POLICY_DENIED, "Other calls of the same moment are to be done first.")
        return self._services.policy_of(self.session)

    def _hear_gateway(self, data: Mapping[str, Any]) -> None:
        """Take what the gateway says of the agent's requests; it is lost when too much waits already."""
        with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._send.send_nowait(GatewaySaid(data))

    async def _tell(self, text: str) -> None:
        """Write a notice into the session's log; one that cannot be written is lost, for it is in the server's too."""
        try:
            await self._turns.note({"text": text})
        except RookeryError as error:
            log.info("notice could not be written", session_id=self.session.id, error=str(error))

    async def _listen(self, agent: Agent) -> None:
        """Forward what the agent says until it is gone."""
        error: Exception | None = None
        try:
            async for message in agent.messages():
                await self._send.send(AgentSaid(message))
        except Exception as caught:
            error = caught
        try:
            await self._send.send(AgentLeft(error))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("actor left before its agent", session_id=self.session.id)

    # --- the inbox --------------------------------------------------------------------------------------------

    async def _handle(self, item: Item) -> bool:
        """Act on one item; whether the agent is gone."""
        match item:
            case StartTurn() as start:
                await self._turns.start(start)
            case Interrupt():
                await self._turns.stop(interrupted=True)
            case GoAway(why):
                self._turns.leaving = why
                await self._turns.stop(interrupted=True)
            case GatewaySaid(data):
                await self._turns.note(data)
            case Overspent():
                await self._turns.overspent()
            case AgentSaid(message):
                await self._turns.hear(message)
            case AgentLeft(error):
                if self._turns.open is not None:
                    self._turns.open.crash = departure(error)
                return True
        return False

    # --- the end ----------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Write what is left to write: an open turn, the state, the lease."""
        store, why = self._services.store, self._turns.leaving
        try:
            with anyio.fail_after(30):
                if self._turns.open is not None:
                    await self._turns.finish()
                if self._files is not None:
                    await seal_files(self.session.id, self._files, self._turns.still)
                freed: dict[str, Any] = {"resident": False, "owner": None}
                if why is Leave.END and not self.session.state.is_terminal:
                    await store.move(self.session.id, SessionState.ENDED, ended_at=self._services.clock.now(), **freed)
                else:
                    await store.update_session(self.session.id, **freed)
        except (RookeryError, TimeoutError) as error:
            log.error("session could not be settled; the janitor will", session_id=self.session.id, error=str(error))
