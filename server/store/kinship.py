"""Sessions and those that they spawned: counted, and bounded in the transaction that adds one."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from server.errors import ErrorCode, RookeryError
from server.models import SessionRecord, SessionState
from server.store.room import Room
from server.store.tables import sessions

_BUSY = tuple(state for state in SessionState if state.is_busy)


class Kinship(Room):
    """What one session is to others."""

    async def children_at_work(self, session_id: str) -> int:
        """How many sessions it has spawned (forks of it are none) that have a turn under way."""
        return await self._database.read(_at_work, session_id, None)


def check_siblings(connection: Connection, session: SessionRecord, bound: int | None) -> None:
    """Refuse one more child at work than the parent's policy allows (row B06). Forks and roots have no parent.

    Raises:
        RookeryError: ``policy_denied``.
    """
    if bound is None or session.parent_id is None or session.forked_from is not None:
        return
    # On Postgres two children could be added at once: the parent's row makes them wait for each other.
    connection.execute(select(sessions.c.id).where(sessions.c.id == session.parent_id).with_for_update())
    if _at_work(connection, session.parent_id, session.id) >= bound:
        raise RookeryError(
            ErrorCode.POLICY_DENIED,
            f"The policy allows only {bound} agents of one session to work at once: wait for one to end.",
        )


def _at_work(connection: Connection, session_id: str, besides: str | None) -> int:
    query = select(func.count()).where(
        sessions.c.parent_id == session_id, sessions.c.forked_from.is_(None), sessions.c.state.in_(_BUSY)
    )
    if besides is not None:
        query = query.where(sessions.c.id != besides)
    return int(connection.execute(query).scalar_one())
