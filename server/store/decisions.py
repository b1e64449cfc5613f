"""The audit: one row for each decision on a tool call. Rows are added; the database refuses to change them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from sqlalchemy import Connection, select

from server.models import DecisionRecord
from server.store.database import insert_for
from server.store.prepared import Prepared
from server.store.room import Room, columns, record
from server.store.tables import decisions


class Decisions(Room):
    """Adding to the audit, and reading it."""

    async def record_decisions(self, entries: Sequence[DecisionRecord]) -> None:
        """Add rows, in one transaction. One that is there already stays as it is.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        if entries:
            rows = [columns(entry) for entry in entries]
            await self._database.write(_add, rows)

    async def decisions(
        self, principal: str, *, session_id: str | None = None, decision: str | None = None, limit: int = 100
    ) -> list[DecisionRecord]:
        """The latest decisions about a principal's agents, oldest first. Those of deleted sessions are kept.

        Args:
            principal: whose agents.
            session_id: of this session only.
            decision: only ``allow``, ``ask`` or ``deny``.
            limit: how many at most.
        """
        query = select(decisions).where(decisions.c.principal == principal)
        if session_id is not None:
            query = query.where(decisions.c.session_id == session_id)
        if decision is not None:
            query = query.where(decisions.c.decision == decision)
        query = query.order_by(decisions.c.at.desc(), decisions.c.id.desc()).limit(limit)

        def body(connection: Connection) -> list[DecisionRecord]:
            return [record(DecisionRecord, row) for row in connection.execute(query)]

        return list(reversed(await self._database.read(body)))


def _add(connection: Connection, rows: Sequence[dict[str, object]]) -> None:
    _adding(connection.dialect.name).change_each(connection, rows)


@functools.cache
def _adding(dialect: str) -> Prepared:
    return Prepared(insert_for(dialect, decisions).on_conflict_do_nothing(index_elements=["id"]))
