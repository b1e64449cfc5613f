"""A session's append-only log of events: numbered 1, 2, 3 … without gaps, whoever writes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, case, insert, select, update

from server.models import Event, EventKind
from server.store.prepared import Prepared
from server.store.room import Room, not_found, record
from server.store.tables import counters, events

Entry = tuple[EventKind, dict[str, Any]]

_NUMBER: Final = Prepared(
    update(counters)
    .where(counters.c.session_id == bindparam("key"))
    .values(last_seq=counters.c.last_seq + bindparam("count"))
    .returning(counters.c.last_seq)
)

_INSERT: Final = Prepared(insert(events))

_LISTENED: Final = (
    update(counters)
    .where(counters.c.session_id == bindparam("key"))
    .values(agent_stream=bindparam("stream"), agent_heard=bindparam("position"))
)
_SETTLED: Final = Prepared(_LISTENED.values(agent_settled=bindparam("position")))
# The first of another agent: nothing of it is settled yet.
_SAME: Final = counters.c.agent_stream == bindparam("stream")
_HEARD: Final = Prepared(_LISTENED.values(agent_settled=case((_SAME, counters.c.agent_settled), else_=0)))

_LAST: Final = select(counters.c.session_id, counters.c.last_seq).where(
    counters.c.session_id.in_(bindparam("keys", expanding=True))
)

_AT_ONCE: Final = 500
"""Sessions that one query asks about; databases bound the number of their parameters."""


@dataclass(frozen=True)
class Heard:
    """How far an agent's output was taken.

    Args:
        stream: names the output; another process of the session's agent has another one.
        position: in bytes from its start.
    """

    stream: str
    position: int


def note_heard(connection: Connection, session_id: str, heard: Heard, *, settled: bool) -> None:
    """Note inside a transaction how far an agent's output was taken; ``settled`` at the end of a turn."""
    values = {"key": session_id, "stream": heard.stream, "position": heard.position}
    (_SETTLED if settled else _HEARD).change(connection, values)


class Events(Room):
    """Appending to the logs of sessions, and reading them."""

    async def append_events(
        self, session_id: str, turn: int, entries: Sequence[Entry], *, heard: Heard | None = None
    ) -> list[Event]:
        """Append entries in their order, in one transaction.

        Args:
            session_id: the session.
            turn: number of the turn that they belong to.
            entries: kinds and data.
            heard: how far the agent's output was taken with them.

        Raises:
            RookeryError: ``session_not_found``, ``storage_unavailable``.
        """
        if not entries:
            return []
        added = await self._database.write(append, session_id, turn, entries, self._now(), heard)
        self._changed(session_id)
        return added

    async def events(
        self, session_id: str, *, after: int = 0, limit: int = 100, kinds: Collection[EventKind] | None = None
    ) -> list[Event]:
        """At most ``limit`` events with a sequence number above ``after``, oldest first."""
        query = select(events).where(events.c.session_id == session_id, events.c.seq > after)
        if kinds is not None:
            query = query.where(events.c.kind.in_(sorted(kinds)))
        query = query.order_by(events.c.seq).limit(limit)

        def body(connection: Connection) -> list[Event]:
            return [record(Event, row) for row in connection.execute(query)]

        return await self._database.read(body)

    async def heard(self, session_id: str) -> tuple[Heard, Heard] | None:
        """How far the output of the session's agent was taken last: with an event, and at the end of a turn.

        None where no agent was heard that may outlive its server.
        """
        query = select(counters).where(counters.c.session_id == session_id)

        def body(connection: Connection) -> tuple[Heard, Heard] | None:
            row = connection.execute(query).first()
            if row is None or row.agent_stream is None:
                return None
            return Heard(row.agent_stream, row.agent_heard), Heard(row.agent_stream, row.agent_settled)

        return await self._database.read(body)

    async def last_seq(self, session_id: str) -> int:
        """Sequence number of the latest event; 0 when there is none, or no such session."""
        query = select(counters.c.last_seq).where(counters.c.session_id == session_id)
        return await self._database.read(lambda connection: connection.execute(query).scalar() or 0)

    async def last_seqs(self, session_ids: Sequence[str]) -> dict[str, int]:
        """Sequence numbers of the latest events of many sessions; those that do not exist are left out."""

        def body(connection: Connection) -> dict[str, int]:
            found: dict[str, int] = {}
            for start in range(0, len(session_ids), _AT_ONCE):
                rows = connection.execute(_LAST, {"keys": session_ids[start : start + _AT_ONCE]})
                found.update((row.session_id, row.last_seq) for row in rows)
            return found

        return await self._database.read(body)


def append(
    connection: Connection,
    session_id: str,
    turn: int,
    entries: Sequence[Entry],
    at: datetime,
    heard: Heard | None = None,
) -> list[Event]:
    """Append inside a transaction. The counter's row is the lock that keeps the numbers without gaps.

    Raises:
        RookeryError: ``session_not_found``.
    """
    counted = _NUMBER.first(connection, {"key": session_id, "count": len(entries)})
    if counted is None:
        raise not_found()
    if heard is not None:
        note_heard(connection, session_id, heard, settled=False)
    added = [
        Event(session_id=session_id, seq=seq, at=at, turn=turn, kind=kind, data=data)
        for seq, (kind, data) in enumerate(entries, start=counted.last_seq - len(entries) + 1)
    ]
    _INSERT.change_each(connection, [dict(event) for event in added])
    return added
