"""Counts over all principals, for the operator."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from server.models import ApprovalStatus, SessionState
from server.store.room import Room
from server.store.tables import approvals, sessions


class Census(Room):
    """Counting what there is."""

    async def census(self) -> tuple[dict[SessionState, int], int]:
        """Sessions by state, and tool calls that wait for a decision."""
        return await self._database.read(_count)


def _count(connection: Connection) -> tuple[dict[SessionState, int], int]:
    rows = connection.execute(select(sessions.c.state, func.count()).group_by(sessions.c.state)).all()
    waiting = connection.scalar(
        select(func.count()).select_from(approvals).where(approvals.c.status == ApprovalStatus.PENDING)
    )
    return {SessionState(state): count for state, count in rows}, waiting or 0
