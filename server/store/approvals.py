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

    async def expire_approvals(self, session_id: str | None = None) -> list[ApprovalRecord]:
        """Mark questions as expired: those whose time is over, or all that wait of a session that stops asking."""
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


def _expire(connection: Connection, session_id: str | None, at: datetime) -> list[ApprovalRecord]:
    over = approvals.c.expires_at <= at if session_id is None else approvals.c.session_id == session_id
    expired = connection.execute(
        update(approvals)
        .where(approvals.c.status == ApprovalStatus.PENDING, over)
        .values(status=ApprovalStatus.EXPIRED, decided_at=at)
        .returning(approvals)
    )
    return [record(ApprovalRecord, row) for row in expired]
