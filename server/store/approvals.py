"""Approvals: questions that are kept, answered once, and expire to a denial."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from server.errors import ErrorCode, RookeryError
from server.models import ApprovalRecord, ApprovalStatus
from server.store.room import Room, columns, execute, record
from server.store.tables import approvals


class Approvals(Room):
    """The questions of sessions to people."""

    async def add_approval(self, approval: ApprovalRecord) -> None:
        """Write a question."""
        query = insert(approvals).values(columns(approval))
        await self._database.write(execute, query)
        self._changed(approval.session_id)

    async def approval(self, principal: str, approval_id: str) -> ApprovalRecord:
        """One of the principal's questions.

        Raises:
            RookeryError: ``approval_not_found``.
        """
        return await self._database.read(_owned, principal, approval_id)

    async def approvals(
        self, principal: str, session_id: str | None = None, *, pending: bool = True
    ) -> list[ApprovalRecord]:
        """The principal's questions, oldest first: those that wait, or all with ``pending=False``."""
        query = select(approvals).where(approvals.c.principal == principal)
        if session_id is not None:
            query = query.where(approvals.c.session_id == session_id)
        if pending:
            query = query.where(approvals.c.status == ApprovalStatus.PENDING, approvals.c.expires_at > self._now())
        query = query.order_by(approvals.c.created_at, approvals.c.id)
        return await self._database.read(lambda connection: _all(connection, query))

    async def answer_approval(
        self, principal: str, approval_id: str, status: ApprovalStatus, *, note: str = "", decided_by: str | None = None
    ) -> ApprovalRecord:
        """Decide a pending question, once. The same decision again returns what was decided.

        Args:
            principal: whose question it is.
            approval_id: the question.
            status: ``allowed`` or ``denied``.
            note: words for the agent.
            decided_by: who decided.

        Raises:
            RookeryError: ``approval_not_found``, ``approval_expired``; ``invalid_argument`` when it was decided the
                other way.
        """
        if status not in (ApprovalStatus.ALLOWED, ApprovalStatus.DENIED):
            raise ValueError("a decision allows or denies")
        decided = await self._database.write(_answer, principal, approval_id, status, note, decided_by, self._now())
        self._changed(decided.session_id)
        return decided

    async def set_aside(self, principal: str, approval_id: str) -> ApprovalRecord:
        """Leave a question open whose call is refused for the moment; one that was answered by now stays as it is.

        Raises:
            RookeryError: ``approval_not_found``.
        """
        return await self._database.write(_set_aside, principal, approval_id)

    async def take_up(self, session_id: str, input_digest: str, tool_use_id: str, turn: int) -> ApprovalRecord | None:
        """Give a call the question, or the answer, that was set aside for exactly its request; only one call gets it.

        Args:
            session_id: whose call it is.
            input_digest: of the request.
            tool_use_id: the call.
            turn: in which it is made.

        Returns:
            the question, which is this call's from now on; None where there is none, or its time is over.
        """
        taken = await self._database.write(_take_up, session_id, input_digest, tool_use_id, turn, self._now())
        if taken is not None:
            self._changed(session_id)
        return taken

    async def expire_approvals(self, session_id: str | None = None) -> list[ApprovalRecord]:
        """Mark questions as expired: those whose time is over, or all that wait of a session that stops asking.

        What was set aside for a call of such a session goes too.
        """
        expired = await self._database.write(_expire, session_id, self._now())
        for changed in {approval.session_id for approval in expired}:
            self._changed(changed)
        return expired


def _all(connection: Connection, query: Any) -> list[ApprovalRecord]:
    return [record(ApprovalRecord, row) for row in connection.execute(query)]


def _owned(connection: Connection, principal: str, approval_id: str) -> ApprovalRecord:
    query = select(approvals).where(approvals.c.id == approval_id, approvals.c.principal == principal)
    row = connection.execute(query).first()
    if row is None:
        raise RookeryError(
            ErrorCode.APPROVAL_NOT_FOUND, "There is no such approval. list_approvals shows those that wait."
        )
    return record(ApprovalRecord, row)


def _answer(
    connection: Connection,
    principal: str,
    approval_id: str,
    status: ApprovalStatus,
    note: str,
    decided_by: str | None,
    at: datetime,
) -> ApprovalRecord:
    pending = (approvals.c.id == approval_id, approvals.c.principal == principal, approvals.c.expires_at > at)
    connection.execute(
        update(approvals)
        .where(*pending, approvals.c.status == ApprovalStatus.PENDING)
        .values(status=status, note=note, decided_by=decided_by, decided_at=at)
    )
    approval = _owned(connection, principal, approval_id)
    if approval.status in (ApprovalStatus.PENDING, ApprovalStatus.EXPIRED):
        raise RookeryError(
            ErrorCode.APPROVAL_EXPIRED, "The approval has expired, which denied the call. Continue the session instead."
        )
    if approval.status is not status:
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"The approval was {approval.status.value} before; that stands.")
    return approval


def _set_aside(connection: Connection, principal: str, approval_id: str) -> ApprovalRecord:
    connection.execute(
        update(approvals)
        .where(
            approvals.c.id == approval_id,
            approvals.c.principal == principal,
            approvals.c.status == ApprovalStatus.PENDING,
        )
        .values(set_aside=True)
    )
    return _owned(connection, principal, approval_id)


def _take_up(
    connection: Connection, session_id: str, input_digest: str, tool_use_id: str, turn: int, at: datetime
) -> ApprovalRecord | None:
    for_it = (
        approvals.c.session_id == session_id,
        approvals.c.input_digest == input_digest,
        approvals.c.set_aside,
        approvals.c.status != ApprovalStatus.EXPIRED,
        approvals.c.expires_at > at,
    )
    oldest = select(approvals.c.id).where(*for_it).order_by(approvals.c.created_at, approvals.c.id).limit(1)
    found = connection.execute(oldest.with_for_update()).scalar()
    row = connection.execute(
        update(approvals)
        .where(approvals.c.id == found)
        .values(set_aside=False, tool_use_id=tool_use_id, turn=turn)
        .returning(approvals)
    ).first()
    return None if row is None else record(ApprovalRecord, row)


def _expire(connection: Connection, session_id: str | None, at: datetime) -> list[ApprovalRecord]:
    over = approvals.c.expires_at <= at if session_id is None else approvals.c.session_id == session_id
    if session_id is not None:
        connection.execute(update(approvals).where(over, approvals.c.set_aside).values(set_aside=False))
    expired = connection.execute(
        update(approvals)
        .where(approvals.c.status == ApprovalStatus.PENDING, over)
        .values(status=ApprovalStatus.EXPIRED, decided_at=at)
        .returning(approvals)
    )
    return [record(ApprovalRecord, row) for row in expired]
