"""Waiting for sessions while their questions are with the user."""

from __future__ import annotations

from typing import Any, cast

import anyio
import anyio.lowlevel

from server.callers import LOCAL
from server.models import Outcome, PendingApproval, SessionState
from tools.definition import Call
from tools.offer import Offer
from tools.waiting import wait_until_settled

NOTHING = Offer((), {}, approves=True)
QUESTION = PendingApproval(approval_id="a", tool="Bash", summary="touch made", expires_at="2030-01-01T00:00:00Z")


class Person:
    """A user who answers when told to."""

    push = object()

    def __init__(self) -> None:
        self.left: set[str] = set()
        self.answers = anyio.Event()
        self.answered = anyio.Event()

    def new(self, pending: list[PendingApproval]) -> list[PendingApproval]:
        return [approval for approval in pending if approval.approval_id not in self.left]

    async def ask(self, approval: PendingApproval) -> None:
        await self.answers.wait()
        self.answered.set()


class Sessions:
    """One session; its question is answered while the outcome that still shows it is being read."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self._reads = 0

    async def outcome(self, principal: str, session_id: str) -> Outcome:
        self._reads += 1
        shown: dict[str, Any] = {"session_id": session_id, "turn": 1, "cursor": self._reads}
        if self._reads == 1:
            return Outcome(state=SessionState.AWAITING_APPROVAL, pending_approvals=(QUESTION,), **shown)
        if self._reads == 2:
            self._person.answers.set()
            await self._person.answered.wait()
            await anyio.lowlevel.checkpoint()
            return Outcome(state=SessionState.AWAITING_APPROVAL, pending_approvals=(QUESTION,), **shown)
        return Outcome(state=SessionState.IDLE, **shown)

    async def wait_for_change(self, *_: object) -> None:
        await anyio.lowlevel.checkpoint()


async def test_an_answer_that_comes_while_the_outcome_is_read_does_not_end_the_wait() -> None:
    person = Person()
    call = Call(LOCAL, NOTHING, cast(Any, Sessions(person)), max_wait_s=30, report=None, elicitation=cast(Any, person))
    with anyio.fail_after(20):
        waited = await wait_until_settled(call, {"s": 1}, wait_s=20)
    assert waited.outcomes[0].state is SessionState.IDLE
