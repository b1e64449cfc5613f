"""Bounded waits: a call attaches to running sessions, shows their progress, and leaves in time.

The agents belong to the registry. A wait that runs out, or whose caller cancels, ends the waiting and nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import anyio
from anyio.abc import TaskGroup
from pydantic import Field

from server.budgets import WARNING_LEVELS
from server.concurrency import background_tasks
from server.models import Outcome, PendingApproval, SessionState
from tools.definition import Call
from tools.elicitation import Elicitation

DEFAULT_WAIT_S: Final = 45.0
"""Below the smallest limit that a client puts on a tool call (about 60 s), with a margin."""

HEARTBEAT_S: Final = 4.5
"""Longest pause between two reports, with a margin below the 5 s that are promised."""

_REPORT_EVERY_S: Final = 0.5
"""Shortest time between two reports: an agent may write many events a second."""

WaitSeconds = Annotated[
    float,
    Field(
        ge=0,
        le=3600,
        description="seconds to wait for the agent before answering; 0 returns at once and leaves it working",
    ),
]


@dataclass(frozen=True)
class Waited:
    """What a wait ended with."""

    outcomes: tuple[Outcome, ...]
    """One for each session, in the order asked for."""
    capped_at_s: float | None
    """The server's longest wait, when less than what the caller asked for and spent to the end."""

    @property
    def working(self) -> tuple[str, ...]:
        """Ids of the sessions that still work."""
        return tuple(outcome.session_id for outcome in self.outcomes if is_working(outcome))


def is_working(outcome: Outcome) -> bool:
    """Whether waiting on may change the outcome; one that awaits an approval needs its caller first.

    Once the last question is answered, the agent takes the answer up by itself.
    """
    answered = outcome.state is SessionState.AWAITING_APPROVAL and not outcome.pending_approvals
    return answered or outcome.state in (SessionState.STARTING, SessionState.RUNNING)


async def wait_until_settled(
    call: Call, turns: Mapping[str, int], *, until: Literal["all", "any"] = "all", wait_s: float, asks: bool = True
) -> Waited:
    """Wait until the sessions have settled, at most ``wait_s`` and at most the server's longest wait.

    Questions of their policies are put to the caller's user meanwhile, where the client can do that.

    Args:
        turns: session id → the turn that must have been reached; 0 for whatever is there. One that others have
            followed already is answered with its own outcome.
        until: ``all`` of them, or ``any``.
        asks: whether the user is asked.

    Raises:
        RookeryError: ``session_not_found``, and what the registry may raise.
        QuestionsPending: the user is to be asked by the call's result.
    """
    # Past the deadline a question stays open, and can still be answered by answer_approval.
    async with background_tasks() as asking:
        return await _wait(call, turns, until, wait_s, _Questions(call, turns, asking) if asks else None)


async def _wait(
    call: Call, turns: Mapping[str, int], until: Literal["all", "any"], wait_s: float, questions: _Questions | None
) -> Waited:
    started = time.monotonic()
    bound = min(wait_s, call.max_wait_s)
    reporter = _ProgressReporter(call, tuple(turns), started)
    # An outcome is read in several steps, so an event between them may be counted in its cursor and missing from its
    # state. Hence each wait starts from the cursor of the reading before: what that one missed, this one has.
    seen = dict.fromkeys(turns, 0)
    past: set[str] | None = None
    while True:
        # Read before the outcomes: a question that is answered while they are read still stands open in them.
        open_before = frozenset() if questions is None else questions.open
        outcomes = [await call.registry.outcome(call.principal, session_id) for session_id in turns]
        if past is None:
            # A call that is made again, with the request_id of a turn that others have followed since.
            past = {one.session_id for one in outcomes if 0 < turns[one.session_id] < one.turn}
        asked = set() if questions is None or wait_s <= 0 else questions.put(outcomes, open_before)
        settled = [
            one.session_id in past
            or (not is_working(one) and one.turn >= turns[one.session_id] and one.session_id not in asked)
            for one in outcomes
        ]
        done = all(settled) if until == "all" else any(settled)
        left = started + bound - time.monotonic()
        await reporter.report(settled, final=done or left <= 0)
        if done or left <= 0:
            for index, one in enumerate(outcomes):
                if one.session_id in past:
                    turn = await call.registry.turn_status(call.principal, one.session_id, turns[one.session_id])
                    outcomes[index] = turn.outcome
            return Waited(tuple(outcomes), call.max_wait_s if not done and wait_s > call.max_wait_s else None)
        pause = min(left, reporter.due_in())
        # The registry bounds the wait itself; the scope guards against one that does not.
        with anyio.move_on_after(pause):
            await call.registry.wait_for_change(
                call.principal,
                [one.session_id for one, ready in zip(outcomes, settled, strict=True) if not ready],
                seen,
                pause,
            )
        seen = {one.session_id: one.cursor for one in outcomes}


class _Questions:
    """Puts the open questions of sessions to the caller's user, each once in a call."""

    def __init__(self, call: Call, turns: Mapping[str, int], tasks: TaskGroup) -> None:
        self._elicitation = call.elicitation
        self._turns = turns
        self._tasks = tasks
        self._open: set[str] = set()

    @property
    def open(self) -> frozenset[str]:
        """The questions that the user has before them."""
        return frozenset(self._open)

    def put(self, outcomes: Sequence[Outcome], open_before: frozenset[str]) -> set[str]:
        """Put what is new; the sessions for which an answer is being waited for.

        Args:
            outcomes: as they were read.
            open_before: what the user had before them when the reading began.

        Raises:
            QuestionsPending: the user is to be asked by the call's result.
        """
        elicitation = self._elicitation
        if elicitation is None:
            return set()
        pending = [approval for outcome in outcomes for approval in outcome.pending_approvals]
        if elicitation.push is None:
            elicitation.return_questions(elicitation.new(pending), self._turns)
            return set()
        for approval in elicitation.new(pending):
            self._open.add(approval.approval_id)
            elicitation.left.add(approval.approval_id)
            self._tasks.start_soon(self._ask, elicitation, approval)
        return {
            outcome.session_id
            for outcome in outcomes
            if any(approval.approval_id in self._open | open_before for approval in outcome.pending_approvals)
        }

    async def _ask(self, elicitation: Elicitation, approval: PendingApproval) -> None:
        await elicitation.ask(approval)
        self._open.discard(approval.approval_id)


class _ProgressReporter:
    """Progress at once and then at least every :data:`HEARTBEAT_S`, with growing numbers and changing text."""

    def __init__(self, call: Call, session_ids: tuple[str, ...], started: float) -> None:
        self._call = call
        self._session_ids = session_ids
        self._started = started
        self._last_number = 0.0
        self._last_at = -math.inf

    def due_in(self) -> float:
        """Seconds until the next report must be out."""
        return HEARTBEAT_S if self._call.report is None else max(0.0, self._last_at + HEARTBEAT_S - time.monotonic())

    async def report(self, settled: list[bool], *, final: bool) -> None:
        now = time.monotonic()
        if self._call.report is None or (not final and now - self._last_at < _REPORT_EVERY_S):
            return
        progress = [await self._call.registry.progress(self._call.principal, one) for one in self._session_ids]
        # The protocol wants each number above the last, though no event may have come since.
        self._last_number = max(self._last_number + 0.001, float(sum(one.step for one in progress)))
        self._last_at = now
        elapsed, usd = now - self._started, sum(one.usd for one in progress)
        percent = max((one.budget_percent for one in progress), default=0)
        spent = f" · {percent} % of the budget" if percent >= WARNING_LEVELS[0] else ""
        if len(progress) == 1:
            head = progress[0].text
        else:
            newest = max(range(len(progress)), key=lambda index: (not settled[index], progress[index].step))
            head = f"{sum(settled)} of {len(settled)} done; {progress[newest].text}"
        await self._call.report(self._last_number, f"{head} · {elapsed:.1f} s · ${usd:.4f}{spent}")
