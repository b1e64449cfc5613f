"""Sessions and those that they spawned: counted, bounded in the transaction that adds one, and followed up and down.

Forks have their original as a parent, but nobody spawned them: they are no children here.
"""

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

    async def descends(self, session_id: str, ancestor_id: str) -> bool:
        """Whether a session was spawned by another, or by one that was, and so on."""
        return await self._database.read(_descends, session_id, ancestor_id)

    async def descendants(self, session_id: str) -> list[str]:
        """All that a session spawned, and they in turn; those furthest down last."""
        return await self._database.read(_descendants, session_id)


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


def _descends(connection: Connection, session_id: str, ancestor_id: str) -> bool:
    line = (
        select(sessions.c.id, sessions.c.parent_id)
        .where(sessions.c.id == session_id, sessions.c.forked_from.is_(None))
        .cte("line", recursive=True)
    )
    above = select(sessions.c.id, sessions.c.parent_id).where(
        sessions.c.id == line.c.parent_id, sessions.c.forked_from.is_(None)
    )
    # The ancestor itself may be a fork: it is compared by the child's word, not looked up.
    line = line.union(above)
    found = select(line.c.id).where(line.c.parent_id == ancestor_id).limit(1)
    return connection.execute(found).first() is not None


def _descendants(connection: Connection, session_id: str) -> list[str]:
    found: list[str] = []
    generation = [session_id]
    while generation:
        query = select(sessions.c.id).where(sessions.c.parent_id.in_(generation), sessions.c.forked_from.is_(None))
        generation = [row.id for row in connection.execute(query)]
        found += generation
    return found
