"""What an answer to an approval sets in motion: a hot call goes on by itself, a sleeping session is woken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from server.errors import ErrorCode, RookeryError
from server.models import (
    ApprovalRecord,
    ApprovalStatus,
    EventKind,
    Failure,
    SessionRecord,
    SessionState,
    StopReason,
    TurnRecord,
)
from server.permissions.put_off import unfinished
from server.services import Services

log = structlog.get_logger(__name__)

MAX_NOTE: Final = 2_000

Resume = Callable[[SessionRecord, TurnRecord], Awaitable[None]]


class Answering:
    """Lists, answers and expires approvals, and resumes what they held up.

    Args:
        resume: starts the actor of a session whose turn was put off.
    """

    def __init__(self, services: Services, resume: Resume) -> None:
        self._services = services
        self._resume = resume

    async def pending(self, principal: str, session_id: str | None) -> list[ApprovalRecord]:
        """The principal's open questions, oldest first.

        Raises:
            RookeryError: ``session_not_found``.
        """
        if session_id is not None:
            await self._services.store.session(principal, session_id)
        return await self._services.store.approvals(principal, session_id, pending=True)

    async def answer(self, principal: str, approval_id: str, *, allow: bool, note: str, by: str) -> ApprovalRecord:
        """Answer a question, once.

        Raises:
            RookeryError: ``approval_not_found``, ``approval_expired``, ``invalid_argument`` (answered otherwise before,
                or a note that is too long).
        """
        if len(note) > MAX_NOTE:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"note: is longer than {MAX_NOTE:,} characters.")
        status = ApprovalStatus.ALLOWED if allow else ApprovalStatus.DENIED
        approval = await self._services.store.answer_approval(principal, approval_id, status, note=note, decided_by=by)
        data = {"approval_id": approval.id, "tool": approval.tool, "status": approval.status.value, "note": note}
        await self._services.store.append_events(approval.session_id, approval.turn, [(EventKind.APPROVAL, data)])
        return approval

    async def asleep(self) -> list[str]:
        """Sessions that sleep over a question: one may have been answered as its server died."""
        sessions = await self._services.store.sessions_in({SessionState.AWAITING_APPROVAL})
        return [session.id for session in sessions if session.owner is None]

    async def resume_if_answered(self, session_id: str) -> bool:
        """Wake a sleeping session one of whose held-up calls was answered; whether it was woken."""
        store = self._services.store
        session = await store.session_for_server(session_id)
        if session.state is not SessionState.AWAITING_APPROVAL or session.owner is not None:
            return False
        waiting = await unfinished(store, session)
        answered = {ApprovalStatus.ALLOWED, ApprovalStatus.DENIED}
        if not any(question.status in answered for question in waiting):
            if waiting and all(question.status is ApprovalStatus.EXPIRED for question in waiting):
                await self._give_up(session, waiting)
            return False
        moved, turn = await store.reopen_turn(session_id, owner=self._services.server_id)
        await self._resume(moved, turn)
        return True

    async def _give_up(self, session: SessionRecord, expired: Sequence[ApprovalRecord]) -> None:
        """All that held the turn up has expired: the session can be continued, and hears of the denial then."""
        store = self._services.store
        error = RookeryError(
            ErrorCode.APPROVAL_EXPIRED,
            "Nobody answered the question in time, so the call is denied. Call continue_session to go on without it.",
        )
        turn = await store.turn(session.id, session.turn)
        denied = [
            (EventKind.DENIAL, {"id": one.tool_use_id, "tool": one.tool, "because": error.message, "rule": one.rule})
            for one in expired
        ]
        await store.append_events(session.id, turn.number, denied)
        await store.update_turn(
            session.id,
            turn.number,
            stop_reason=StopReason.AWAITING_APPROVAL,
            error=Failure.of(error).model_dump(mode="json"),
            denials=turn.denials + len(expired),
        )
        await store.move(session.id, SessionState.IDLE, expect={SessionState.AWAITING_APPROVAL})

    async def expire(self) -> None:
        """Mark questions whose time is over. The sessions that slept over them are found by :meth:`asleep`."""
        await self._services.store.expire_approvals()
