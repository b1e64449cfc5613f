"""Runs a session's turns with its agent, one after the other: from the prompt to the row that the store keeps.

A turn may be interrupted, rest while the model API fails, outlast its result by background tasks, or begin by itself
because one of these woke the agent. Only the session's actor calls in here.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

import anyio
import structlog
from claude_agent_sdk import AssistantMessage, ClaudeSDKError, Message, SystemMessage

from server.agent.agent import Agent
from server.direct import book, is_direct, is_spent
from server.errors import ErrorCode, RookeryError
from server.gateway import Grant, classify
from server.inbox import Leave, OpenTurn, StartTurn, message_id_of
from server.launching.placing import Placement
from server.models import EventKind, Failure, SessionRecord, SessionState, StopReason, TurnOrigin, TurnRecord
from server.permissions.authority import SessionAuthority
from server.sandbox_meter import SandboxMeter
from server.services import Services
from server.store import Heard
from server.telemetry.turn_span import TurnSpan
from server.turns.conclusions import departure
from server.turns.endings import ended_record, is_foreign_result, is_refusal_of_ours, write_end
from server.turns.limits import TurnLimits
from server.turns.retrying import CONTINUE_PROMPT, next_attempt
from server.turns.tracker import Entry, TurnTracker
from server.workspaces.snapshots import Snapshots

log = structlog.get_logger(__name__)

STOP_GRACE_S: Final = 8.0
"""How long the agent may take to end a turn after an interrupt, before its process is ended."""

WAKE_GRACE_S: Final = 1.0
"""How long after a background task the agent may take to wake from it (measured: 0.04 to 0.09 s)."""

SETTLE_GRACE_S: Final = 2.0
"""How long after a result the agent may take to call itself idle (measured: 3 ms)."""

LEDGER_GRACE_S: Final = 5.0
"""How long a turn's end waits for the ledger entry of its last model request."""


class TurnRunner:
    """The turns of one session while it is resident.

    Args:
        services: the shared parts.
        session: the session.
        limits: bound its turns.
        authority: decides on its agent's calls.
        snapshots: takes its checkpoints.
        meter: measures its sandbox.
        placement: where its sandbox comes from.

    Attributes:
        session: the session as this server last wrote it.
        limits: bound its turns.
        open: the turn under way.
        leaving: why the session's agent is to go.
        still: the tree that the files are since a turn's end, as the agent is held still.
        idle_since: monotonic time of the last turn's end.
    """

    def __init__(
        self,
        services: Services,
        session: SessionRecord,
        limits: TurnLimits,
        *,
        authority: SessionAuthority,
        snapshots: Snapshots,
        meter: SandboxMeter,
        placement: Placement,
    ) -> None:
        self.session = session
        self.limits = limits
        self.open: OpenTurn | None = None
        self.leaving: Leave | None = None
        self.still: str | None = None
        self.idle_since = anyio.current_time()
        self._services = services
        self._authority = authority
        self._snapshots = snapshots
        self._meter = meter
        self._placement = placement
        self._tracker = TurnTracker()
        self._agent: Agent | None = None
        self._grant: Grant | None = None
        self._known = 0
        self._heard = 0
        """How far the agent's output is in the store, where it may outlive this process."""

    def take(self, start: StartTurn) -> OpenTurn:
        """Open a turn that is in the store."""
        span = TurnSpan(self.session, start.turn, start.trace)
        self._known = max(self._known, start.heard)
        self.open = OpenTurn(start.turn, span, resumed=start.resumed, message_id=message_id_of(start.turn))
        return self.open

    def take_over(self, agent: Agent, grant: Grant) -> None:
        """Work with this agent from now on; the open turn's time begins."""
        self._agent, self._grant = agent, grant
        self._arm()

    def let_go(self) -> None:
        """The agent is gone."""
        self._agent = None

    async def start(self, start: StartTurn) -> None:
        """Run a turn with an agent that is idle."""
        self.take(start)
        await self.checkpoint()
        self._arm()
        await self.begin()

    async def overspent(self) -> None:
        """Time in the sandbox has used the budget up: the open turn must stop."""
        if self.open is not None:
            self.open.overspent = True
            await self.stop()

    async def note(self, data: Mapping[str, Any]) -> None:
        """Write a notice into the session's log.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        number = self.session.turn if self.open is None else self.open.record.number
        await self._services.store.append_events(self.session.id, number, [(EventKind.NOTICE, dict(data))])

    async def hear(self, message: Message) -> None:
        """Take what the agent said, with all that waits behind it, in one write of events."""
        entries: list[Entry] = []
        if self._is_waking(message):
            await self._begin_background()
        if is_foreign_result(message, self.open) or is_refusal_of_ours(message, self.open):
            return
        entries.extend(self._tracker.feed(message))
        if self.open is not None and self.open.put_off is not None:
            done = {data["id"] for kind, data in entries if kind is EventKind.TOOL_RESULT}
            self.open.put_off.done = self.open.put_off.done or self.open.put_off.call in done
        position = None if self._agent is None else self._agent.position_of(message)
        if position is not None:
            self._heard = position
            if position <= self._known:
                # The server that died had stored this; what the agent said is heard again, not told again.
                entries = []
        if self.open is not None:
            self.open.span.hear(message)
            await self._services.store.append_events(
                self.session.id, self.open.record.number, entries, heard=self._hearing
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
        turn = self.open
        if turn is None or self._tracker.result is None or turn.retry_at is not None:
            return
        if turn.settle_deadline is None:
            background = self._services.settings.background_s if self._tracker.tasks else SETTLE_GRACE_S
            turn.settle_deadline = anyio.current_time() + background
            if turn.stopped:
                await self._stop_tasks()
        if self._tracker.ended and self._tracker.agent_state in (None, "idle"):
            if self._tracker.owes_turn:
                turn.settle_deadline = anyio.current_time() + WAKE_GRACE_S
            else:
                await self._conclude()

    def _is_waking(self, message: Message) -> bool:
        """Whether the agent begins a turn that no prompt asked for."""
        over = self.open is None or (self.open.prompted and self._tracker.result is not None)
        if not over or self.leaving is not None:
            return False
        match message:
            case AssistantMessage(parent_tool_use_id=None):
                return True
            case SystemMessage(subtype="session_state_changed", data=data):
                return data.get("state") == "running" and self._tracker.agent_state != "running"
            case _:
                return False

    async def checkpoint(self) -> None:
        """Take the checkpoint that the open turn begins with."""
        if self.open is not None and not self.open.resumed:
            self.open.record = await self._snapshots.start_of(self.open.record, still=self.still is not None)

    async def begin(self) -> None:
        """Send the prompt of the turn that is open."""
        turn, agent = self.open, self._agent
        if turn is None or agent is None:
            return
        if self.session.state is SessionState.STARTING:
            self.session = await self._services.store.move(self.session.id, SessionState.RUNNING, resident=True)
        if turn.interrupted:
            await self.finish()
            return
        if turn.resumed:
            turn.prompted = True
            return
        if is_direct(self._services, self.session) and await is_spent(self._services, self.session):
            turn.overspent = True
            await self.finish()
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
        if self.open is not None:
            await self.finish()
        if self._agent is not None:
            self._release(self._agent)
        now = self._services.clock.now()
        record = TurnRecord(
            session_id=self.session.id, number=0, origin=TurnOrigin.BACKGROUND, prompt="", started_at=now
        )
        begun, _ = await self._services.store.begin_turn(
            self.session.id, record, owner=self._services.server_id, budget_nano_usd=None
        )
        self.take(StartTurn(begun)).prompted = True
        self._arm()

    def _arm(self) -> None:
        """Count from here: the turn's words, its failures and its time."""
        turn = self.open
        if turn is None:
            return
        self._tracker.begin()
        self._authority.begin(turn.record.number)
        self.limits.begin(self.session, turn)
        if self._grant is not None:
            self._grant.turn = turn.record.number
            self._grant.trace = turn.span.context
            self._grant.failures.clear()

    async def keep_limits(self) -> None:
        """Hold the open turn to the limits of its policy as it is now.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        turn = self.open
        if turn is None:
            return
        self.session = await self.limits.keep(self.session, turn)
        if turn.stop_deadline is None and self._is_out_of_turns(turn):
            turn.out_of_turns = True
            await self.stop()

    def _is_out_of_turns(self, turn: OpenTurn) -> bool:
        """Whether the agent goes on though the policy allows the model no further turn by now."""
        most, agent = turn.max_turns, self._agent
        if most is None or agent is None or self._tracker.result is not None:
            return False
        if agent.max_turns is not None and agent.max_turns <= most:
            # The CLI knows, and ends the turn by itself.
            return False
        return self._tracker.model_turns.used_up(most)

    async def stop(self, *, interrupted: bool = False, timed_out: bool = False) -> None:
        """Ask the agent to stop; its result follows, or its process is ended after a grace."""
        turn, agent = self.open, self._agent
        if turn is None or turn.stop_deadline is not None:
            return
        turn.interrupted = turn.interrupted or interrupted
        turn.timed_out = turn.timed_out or timed_out
        if turn.retry_at is not None:
            await self.finish()
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
        turn, result, grant = self.open, self._tracker.result, self._grant
        over = result is None or not result.is_error or self.leaving is not None
        if over or turn is None or grant is None or turn.holds_the_model:
            await self.finish()
            return
        with anyio.move_on_after(LEDGER_GRACE_S):
            await grant.quiet()
        failure, now = classify(grant.failures), anyio.current_time()
        attempt = None
        if failure is not None and not turn.stopped:
            attempt = next_attempt(
                failure,
                made=turn.attempts,
                most=self._services.settings.turn_retries,
                left_s=turn.deadline - now,
                retry_after_s=grant.failures[-1].retry_after,
            )
        if attempt is None or failure is None:
            await self.finish()
            return
        turn.attempts, turn.retry_at = attempt.number, now + attempt.pause_s
        turn.settle_deadline, turn.prompted = None, False
        await self.note(attempt.notice(failure, self._services.clock.now()))

    async def _go_on(self, turn: OpenTurn) -> None:
        """Ask the agent to continue after the model API had failed."""
        turn.retry_at, turn.message_id = None, str(uuid.uuid4())
        self._tracker.begin()
        if self._grant is not None:
            self._grant.failures.clear()
        if self._agent is not None:
            await self._ask(self._agent, turn, CONTINUE_PROMPT)

    async def finish(self) -> None:
        """Write the turn's end: conclusion, checkpoint, costs, state."""
        turn = self.open
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
        if turn.stopped or turn.crash is not None:
            await self._authority.close_questions()
        held = await self._hold(turn)
        try:
            record = await self._snapshots.end_of(record)
        except RookeryError as error:
            if error.code is not ErrorCode.SANDBOX_LOST:
                raise
            # What the turn did is gone with its sandbox; whatever it said of itself, that is no good end.
            record = record.model_copy(update={"stop_reason": StopReason.ERROR, "error": Failure.of(error)})
            held = False
        if held:
            self.still = self._snapshots.latest
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
        self.open = None
        if waits:
            self.leaving = self.leaving or Leave.HIBERNATE
        self.idle_since = anyio.current_time()

    async def _hold(self, turn: OpenTurn) -> bool:
        """Hold the agent still till its next prompt, where it is done and nothing else runs; whether that is so.

        What the files are then stays certain without another look at them all.
        """
        if self._agent is None or turn.crash is not None or not self._tracker.at_rest:
            return False
        return await self._agent.hold()

    def _release(self, agent: Agent) -> None:
        self.still = None
        agent.release()

    @property
    def _rest(self) -> SessionState:
        """Where a turn's end leaves the session: a first turn that got no sandbox leaves nothing to continue."""
        lost = self._placement.error is not None and self.session.sandbox is None
        return SessionState.FAILED if lost else SessionState.IDLE

    async def on_deadline(self, turn: OpenTurn) -> None:
        """Do what is due by the open turn's deadline."""
        now = anyio.current_time()
        if turn.stop_deadline is not None and now >= turn.stop_deadline:
            await self._kill()
        elif turn.retry_at is not None and now >= turn.retry_at:
            await self._go_on(turn)
        elif turn.settle_deadline is not None and now >= turn.settle_deadline:
            await self._on_overdue(turn)
        elif now >= turn.deadline:
            await self.stop(timed_out=True)

    async def _on_overdue(self, turn: OpenTurn) -> None:
        """The result came, and what should have followed did not."""
        if self._tracker.tasks:
            names = "; ".join(self._tracker.tasks.values())
            await self.note({"text": f"Background tasks ran too long and were stopped: {names}"})
            turn.settle_deadline = None
            turn.stop_deadline = anyio.current_time() + STOP_GRACE_S
            await self._stop_tasks()
        else:
            await self._conclude()

    async def _kill(self) -> None:
        """The agent did not stop in time. Its end comes as ``AgentLeft``."""
        log.warning("agent did not stop in time and is killed", session_id=self.session.id)
        if self.open is not None:
            self.open.stop_deadline = None
            self.open.deadline = anyio.current_time() + STOP_GRACE_S
        if self._agent is not None:
            await self._agent.kill()
