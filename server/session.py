"""The session actor: one task that alone owns a live agent, from its wake to its sleep.

It reads one inbox: commands of the registry and what the agent says. Nothing else touches the agent, so nothing here
needs a lock. The actor lives while the session is resident; an idle session that hibernates has none.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import anyio
import structlog
from anyio.abc import TaskGroup
from claude_agent_sdk import AssistantMessage, ClaudeSDKError, Message, SystemMessage

from policies import Policy
from server.agent.agent import Agent
from server.authority import SessionAuthority
from server.changes import Changes
from server.conclusions import departure, failure_of, start_failure
from server.concurrency import background_tasks
from server.direct import book, is_direct, is_spent
from server.endings import ended_record, is_foreign_result, write_end
from server.errors import RookeryError
from server.files import WorkspaceFiles
from server.gateway import Grant, classify
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
    message_id_of,
)
from server.launching import LiveAgent
from server.models import EventKind, SessionRecord, SessionState, StopReason, TurnOrigin, TurnRecord
from server.placing import Placement
from server.policy_book import tightest
from server.resting import seal_files
from server.retrying import CONTINUE_PROMPT, next_attempt
from server.sandbox_meter import SandboxMeter
from server.services import Services
from server.snapshots import Snapshots, heal_workspace
from server.store import Heard
from server.telemetry.spans import present
from server.telemetry.turn_span import TurnSpan
from server.turns import Entry, TurnTracker

log = structlog.get_logger(__name__)

INBOX_SIZE: Final = 256
"""Items that may wait for the actor; beyond that the agent is slowed down, not the memory filled."""

STOP_GRACE_S: Final = 8.0
"""How long the agent may take to end a turn after an interrupt, before its process is ended."""

WAKE_GRACE_S: Final = 1.0
"""How long after a background task the agent may take to wake from it (measured: 0.04 to 0.09 s)."""

SETTLE_GRACE_S: Final = 2.0
"""How long after a result the agent may take to call itself idle (measured: 3 ms)."""

LEDGER_GRACE_S: Final = 5.0
"""How long a turn's end waits for the ledger entry of its last model request."""


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
        self.session = session
        self._services = services
        self._policy = policy
        self._send, self._receive = anyio.create_memory_object_stream[Item](INBOX_SIZE)
        self._tracker = TurnTracker()
        self._authority = SessionAuthority(services, session, changes)
        self._snapshots = Snapshots(services, session)
        self._meter = SandboxMeter(services, session, self._overspent)
        self._agent: Agent | None = None
        self._files: WorkspaceFiles | None = None
        self._grant: Grant | None = None
        self._turn: OpenTurn | None = None
        self._leaving: Leave | None = None
        self._gone = False
        self._known = 0
        self._still: str | None = None
        """The tree that the files are since a turn's end, as the agent is held still."""
        self._idle_since = anyio.current_time()
        self._begun = False
        self._heard = 0
        """How far the agent's output is in the store, where it may outlive this process."""
        self.placement = Placement(services, warm, survivor)
        self.stopped = anyio.Event()
        """Set when the actor is gone and the store says so."""

    @property
    def idle_since(self) -> float | None:
        """Monotonic time since when it has nothing to do; None in a turn."""
        busy = self._turn is not None or not self._begun or self._receive.statistics().current_buffer_used
        return None if busy else self._idle_since

    def start_turn(self, turn: TurnRecord) -> bool:
        """Hand an idle actor its next turn; False when it is leaving and takes none."""
        if self._leaving is not None or self._gone:
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
        if self._turn is not None and not self._turn.prompted:
            self._turn.interrupted = True
        try:
            await self._send.send(item)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("actor had left before the command", session_id=self.session.id)

    # --- life -------------------------------------------------------------------------------------------------

    async def run(self, first: StartTurn) -> None:
        """Live: start the agent, run turns, leave. Never raises; all ends are written to the store."""
        self._turn, self._begun = self._opened(first), True
        self._known = first.heard
        try:
            async with anyio.create_task_group() as tasks:
                try:
                    await self._live(tasks)
                finally:
                    tasks.cancel_scope.cancel()
        except Exception as error:
            log.exception("session actor failed", session_id=self.session.id)
            if self._turn is not None and self._turn.crash is None:
                self._turn.crash = failure_of(error)
        finally:
            self._gone = True
            self._agent = None
            self._take_unstarted()
            self._receive.close()
            with anyio.CancelScope(shield=True):
                await self.placement.close()
                await self._meter.close()
                await self._settle()
            self.stopped.set()

    def _take_unstarted(self) -> None:
        """A turn or an order to leave that reached the inbox too late must not be lost with it."""
        while True:
            try:
                item = self._receive.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
                return
            match item:
                case StartTurn() as start if self._turn is None:
                    self._turn = self._opened(start)
                    self._turn.crash = departure(None)
                case GoAway(why):
                    self._leaving = why
                case _:
                    pass

    async def _live(self, tasks: TaskGroup) -> None:
        async with AsyncExitStack() as stack:
            assert self._turn is not None
            try:
                with self._turn.span.current():
                    await self._wake(stack)
            except (RookeryError, ClaudeSDKError, TimeoutError, OSError, ExceptionGroup) as error:
                self._turn.crash = start_failure(error)
                return
            assert self._agent is not None
            tasks.start_soon(self._listen, self._agent)
            tasks.start_soon(self._meter.serve)
            await self._begin()
            while self._leaving is None or self._turn is not None:
                item: Item | None = None
                with anyio.move_on_at(self._next_deadline()):
                    item = await self._receive.receive()
                if item is None:
                    await self._on_deadline()
                elif await self._handle(item):
                    return

    async def _wake(self, stack: AsyncExitStack) -> None:
        """Bring the sandbox and the agent up, and take the turn's checkpoint meanwhile."""
        sandbox = await self.placement.sandbox_of(self.session)
        self._meter.start()
        await heal_workspace(self._services, self.session, self._services.files(self.session.id, sandbox))
        # Of their own, as what was certain of the files ends with the agent's start.
        self._files = files = self._services.files(self.session.id, sandbox)
        self._snapshots.attach(files)
        self._authority.look_at(files)
        checkpointed = anyio.Event()

        async def checkpoint() -> None:
            await self._checkpoint_start()
            checkpointed.set()

        async with background_tasks() as beside:
            beside.start_soon(checkpoint)
            live = await self.placement.agent_of(self.session, self._policy, sandbox, stack)
            await self._authority.restore()
            if self._turn is not None and not self._turn.resumed:
                self._turn.leftover = await self._authority.owes_a_call()
            self._take_over(live)
            if not live.agent.alive:
                await stack.enter_async_context(live.agent)
            await checkpointed.wait()
        if self.session.state is not SessionState.STARTING:
            await self._services.store.update_session(self.session.id, resident=True)

    def _take_over(self, live: LiveAgent) -> None:
        """Make an agent this session's, before it runs: one that resumes asks for its deferred call at once."""
        session = self.session
        live.grant.terms = lambda: self._services.policy_of(session)
        live.grant.tell = self._hear_gateway
        live.grant.bind(session_id=session.id, root_id=session.root_id, principal=session.principal)
        live.gate.authority = self._authority
        if live.delegation is not None:
            live.delegation.bind(session)
        if live.outlet is not None:
            live.outlet.allow(lambda: self._services.policy_of(session).egress, self._tell)
        self._grant, self._agent = live.grant, live.agent
        if self._turn is not None:
            self._arm(self._turn)

    def _hear_gateway(self, data: Mapping[str, Any]) -> None:
        """Take what the gateway says of the agent's requests; it is lost when too much waits already."""
        with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._send.send_nowait(GatewaySaid(data))

    async def _tell(self, text: str) -> None:
        """Write a notice into the session's log; one that cannot be written is lost, for it is in the server's too."""
        number = self.session.turn if self._turn is None else self._turn.record.number
        try:
            await self._services.store.append_events(self.session.id, number, [(EventKind.NOTICE, {"text": text})])
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
                self._turn = self._opened(start)
                await self._checkpoint_start()
                self._arm(self._turn)
                await self._begin()
            case Interrupt():
                await self._stop_turn(interrupted=True)
            case GoAway(why):
                self._leaving = why
                await self._stop_turn(interrupted=True)
            case GatewaySaid(data):
                number = self.session.turn if self._turn is None else self._turn.record.number
                await self._services.store.append_events(self.session.id, number, [(EventKind.NOTICE, dict(data))])
            case Overspent():
                if self._turn is not None:
                    self._turn.overspent = True
                    await self._stop_turn()
            case AgentSaid(message):
                await self._hear(message)
            case AgentLeft(error):
                if self._turn is not None:
                    self._turn.crash = departure(error)
                return True
        return False

    async def _hear(self, message: Message) -> None:
        """Take what the agent said, with all that waits behind it, in one write of events."""
        entries: list[Entry] = []
        if self._is_waking(message):
            await self._begin_background()
        if is_foreign_result(message, self._turn):
            return
        entries.extend(self._tracker.feed(message))
        position = None if self._agent is None else self._agent.position_of(message)
        if position is not None:
            self._heard = position
            if position <= self._known:
                # The server that died had stored this; what the agent said is heard again, not told again.
                entries = []
        if self._turn is not None:
            self._turn.span.hear(message)
            await self._services.store.append_events(
                self.session.id, self._turn.record.number, entries, heard=self._hearing
            )
        elif entries:
            await self._services.store.append_events(self.session.id, self.session.turn, entries, heard=self._hearing)
        await self._after_message()

    @property
    def _hearing(self) -> Heard | None:
        """How far the agent's output was taken; None where no other server could take it over."""
        if self._agent is None or not self._agent.stream:
            return None
        return Heard(self._agent.stream, self._heard)

    async def _after_message(self) -> None:
        turn = self._turn
        if turn is None or self._tracker.result is None or turn.retry_at is not None:
            return
        if turn.settle_deadline is None:
            background = self._services.settings.background_s if self._tracker.tasks else SETTLE_GRACE_S
            turn.settle_deadline = anyio.current_time() + background
            if turn.interrupted or turn.timed_out:
                await self._stop_tasks()
        if self._tracker.ended and self._tracker.agent_state in (None, "idle"):
            if self._tracker.owes_turn:
                turn.settle_deadline = anyio.current_time() + WAKE_GRACE_S
            else:
                await self._conclude()

    def _is_waking(self, message: Message) -> bool:
        """Whether the agent begins a turn that no prompt asked for."""
        over = self._turn is None or (self._turn.prompted and self._tracker.result is not None)
        if not over or self._leaving is not None:
            return False
        match message:
            case AssistantMessage(parent_tool_use_id=None):
                return True
            case SystemMessage(subtype="session_state_changed", data=data):
                return data.get("state") == "running" and self._tracker.agent_state != "running"
            case _:
                return False

    # --- turns ------------------------------------------------------------------------------------------------

    async def _checkpoint_start(self) -> None:
        if self._turn is not None and not self._turn.resumed:
            self._turn.record = await self._snapshots.start_of(self._turn.record, still=self._still is not None)

    async def _begin(self) -> None:
        """Send the prompt of the turn that is open."""
        turn, agent = self._turn, self._agent
        if turn is None or agent is None:
            return
        if self.session.state is SessionState.STARTING:
            self.session = await self._services.store.move(self.session.id, SessionState.RUNNING, resident=True)
        if turn.interrupted:
            await self._finish()
            return
        if turn.resumed:
            turn.prompted = True
            return
        if is_direct(self._services, self.session) and await is_spent(self._services, self.session):
            turn.overspent = True
            await self._finish()
            return
        notice = self.session.pending_notice
        if await self._ask(agent, turn, turn.record.prompt, notice) and notice is not None:
            self.session = await self._services.store.update_session(self.session.id, pending_notice=None)

    async def _ask(self, agent: Agent, turn: OpenTurn, prompt: str, notice: str | None = None) -> bool:
        """Send a prompt of the turn; whether the agent took it."""
        self._release(agent)
        try:
            await agent.prompt(prompt, turn.message_id, notice=notice)
        except ClaudeSDKError as error:
            turn.crash = departure(error)
            return False
        turn.prompted = True
        return True

    async def _begin_background(self) -> None:
        """The agent woke by itself: finish what is open and give the new turn a row of its own."""
        if self._turn is not None:
            await self._finish()
        if self._agent is not None:
            self._release(self._agent)
        now = self._services.clock.now()
        record = TurnRecord(
            session_id=self.session.id, number=0, origin=TurnOrigin.BACKGROUND, prompt="", started_at=now
        )
        begun, _ = await self._services.store.begin_turn(
            self.session.id, record, owner=self._services.server_id, budget_nano_usd=None
        )
        self._turn = self._opened(StartTurn(begun))
        self._turn.prompted = True
        self._arm(self._turn)

    def _opened(self, start: StartTurn) -> OpenTurn:
        span = TurnSpan(self.session, start.turn, start.trace)
        return OpenTurn(start.turn, span, resumed=start.resumed, message_id=message_id_of(start.turn))

    def _arm(self, turn: OpenTurn) -> None:
        self._tracker.begin()
        self._authority.begin(turn.record.number)
        turn.timeout_s = self._longest_turn()
        turn.deadline = anyio.current_time() + turn.timeout_s
        if self._grant is not None:
            self._grant.turn = turn.record.number
            self._grant.trace = turn.span.context
            self._grant.failures.clear()

    def _longest_turn(self) -> float:
        """How long a turn may take, by the settings and by the policy as it is now."""
        try:
            self._policy = self._services.policy_of(self.session)
        except RookeryError as error:
            log.warning("policy cannot be read; the one at the start holds", error=str(error))
        longest = self._services.settings.turn_timeout_s
        return tightest(self._policy.limits.wall, longest) or longest

    async def _stop_turn(self, *, interrupted: bool = False, timed_out: bool = False) -> None:
        """Ask the agent to stop; its result follows, or its process is ended after a grace."""
        turn, agent = self._turn, self._agent
        if turn is None or turn.stop_deadline is not None:
            return
        turn.interrupted = turn.interrupted or interrupted
        turn.timed_out = turn.timed_out or timed_out
        if turn.retry_at is not None:
            await self._finish()
            return
        turn.stop_deadline = anyio.current_time() + STOP_GRACE_S
        if agent is not None and turn.prompted:
            if self._tracker.result is None:
                await agent.interrupt()
            await self._stop_tasks()

    async def _stop_tasks(self) -> None:
        if self._agent is not None:
            for task in list(self._tracker.tasks):
                await self._agent.stop_task(task)

    async def _conclude(self) -> None:
        """End the turn; but where the model API failed, go on with it in a while, as far as that is worth it."""
        turn, result, grant = self._turn, self._tracker.result, self._grant
        if turn is None or result is None or grant is None or not result.is_error or self._leaving is not None:
            await self._finish()
            return
        with anyio.move_on_after(LEDGER_GRACE_S):
            await grant.quiet()
        failure, now = classify(grant.failures), anyio.current_time()
        attempt = None
        if failure is not None and not (turn.interrupted or turn.timed_out or turn.overspent):
            attempt = next_attempt(
                failure,
                made=turn.attempts,
                most=self._services.settings.turn_retries,
                left_s=turn.deadline - now,
                retry_after_s=grant.failures[-1].retry_after,
            )
        if attempt is None or failure is None:
            await self._finish()
            return
        turn.attempts, turn.retry_at = attempt.number, now + attempt.pause_s
        turn.settle_deadline, turn.prompted = None, False
        notice = attempt.notice(failure, self._services.clock.now())
        await self._services.store.append_events(self.session.id, turn.record.number, [(EventKind.NOTICE, notice)])

    async def _go_on(self, turn: OpenTurn) -> None:
        """Ask the agent to continue after the model API had failed."""
        turn.retry_at, turn.message_id = None, str(uuid.uuid4())
        self._tracker.begin()
        if self._grant is not None:
            self._grant.failures.clear()
        if self._agent is not None:
            await self._ask(self._agent, turn, CONTINUE_PROMPT)

    async def _finish(self) -> None:
        """Write the turn's end: conclusion, checkpoint, costs, state."""
        turn = self._turn
        if turn is None:
            return
        if self._grant is not None:
            # What is still on its way into the ledger belongs to this turn.
            with anyio.move_on_after(LEDGER_GRACE_S):
                await self._grant.quiet()
        if is_direct(self._services, self.session):
            await book(self._services, self.session, turn.record, self._tracker.result)
        await self._meter.mark()
        upstream = classify(self._grant.failures) if self._grant is not None else None
        record = await ended_record(
            self._services, self.session, turn, self._tracker, upstream=upstream, denials=self._authority.denials
        )
        held = await self._hold(turn)
        record = await self._snapshots.end_of(record)
        if held:
            self._still = self._snapshots.latest
        waits = record.stop_reason is StopReason.AWAITING_APPROVAL
        self.session = await write_end(
            self._services.store,
            record,
            to=SessionState.AWAITING_APPROVAL if waits else self._rest,
            heard=self._hearing,
        )
        if self._agent is not None:
            self._agent.settle(self._heard)
        turn.span.end(record)
        self._services.metrics.turn_ended(record)
        self._turn = None
        if waits:
            self._leaving = self._leaving or Leave.HIBERNATE
        self._idle_since = anyio.current_time()

    async def _hold(self, turn: OpenTurn) -> bool:
        """Hold the agent still till its next prompt, where it is done and nothing else runs; whether that is so.

        What the files are then stays certain without another look at them all.
        """
        if self._agent is None or turn.crash is not None or not self._tracker.at_rest:
            return False
        return await self._agent.hold()

    def _release(self, agent: Agent) -> None:
        self._still = None
        agent.release()

    @property
    def _rest(self) -> SessionState:
        """Where a turn's end leaves the session: a first turn that got no sandbox leaves nothing to continue."""
        lost = self.placement.error is not None and self.session.sandbox is None
        return SessionState.FAILED if lost else SessionState.IDLE

    # --- deadlines --------------------------------------------------------------------------------------------

    def _next_deadline(self) -> float:
        if self._turn is not None:
            return self._turn.next_deadline()
        return self._idle_since + self._services.settings.idle_s

    async def _on_deadline(self) -> None:
        turn, now = self._turn, anyio.current_time()
        if turn is None:
            if not self._receive.statistics().current_buffer_used:
                self._leaving = Leave.HIBERNATE
        elif turn.stop_deadline is not None and now >= turn.stop_deadline:
            await self._kill()
        elif turn.retry_at is not None and now >= turn.retry_at:
            await self._go_on(turn)
        elif turn.settle_deadline is not None and now >= turn.settle_deadline:
            await self._on_overdue(turn)
        elif now >= turn.deadline:
            await self._stop_turn(timed_out=True)

    async def _on_overdue(self, turn: OpenTurn) -> None:
        """The result came, and what should have followed did not."""
        if self._tracker.tasks:
            names = "; ".join(self._tracker.tasks.values())
            notice: Entry = (EventKind.NOTICE, {"text": f"Background tasks ran too long and were stopped: {names}"})
            await self._services.store.append_events(self.session.id, turn.record.number, [notice])
            turn.settle_deadline = None
            turn.stop_deadline = anyio.current_time() + STOP_GRACE_S
            await self._stop_tasks()
        else:
            await self._conclude()

    async def _kill(self) -> None:
        """The agent did not stop in time. Its end comes as ``AgentLeft``."""
        log.warning("agent did not stop in time and is killed", session_id=self.session.id)
        if self._turn is not None:
            self._turn.stop_deadline = None
            self._turn.deadline = anyio.current_time() + STOP_GRACE_S
        if self._agent is not None:
            await self._agent.kill()

    # --- the end ----------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Write what is left to write: an open turn, the state, the lease."""
        store, why = self._services.store, self._leaving
        try:
            with anyio.fail_after(30):
                if self._turn is not None:
                    await self._finish()
                if self._files is not None:
                    await seal_files(self.session.id, self._files, self._still)
                freed: dict[str, Any] = {"resident": False, "owner": None}
                if why is Leave.END and not self.session.state.is_terminal:
                    await store.move(self.session.id, SessionState.ENDED, ended_at=self._services.clock.now(), **freed)
                else:
                    await store.update_session(self.session.id, **freed)
        except (RookeryError, TimeoutError) as error:
            log.error("session could not be settled; the janitor will", session_id=self.session.id, error=str(error))
