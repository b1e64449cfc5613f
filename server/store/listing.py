"""Pages of sessions, newest first, with what each has cost."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, func, select, tuple_

from server.errors import ErrorCode, RookeryError
from server.models import NANO_USD, SessionState
from server.requests import ListRequest
from server.store.room import Room
from server.store.tables import cost_totals, counters, session_labels, sessions
from server.views import Heads, SessionPage, SessionSummary

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_CURSOR: Final = re.compile(r"(\d{1,17}):([A-Za-z0-9-]{1,64})")
"""Microseconds since the epoch and id of the last session shown."""

_SHOWN: Final = (
    sessions.c.id.label("session_id"),
    sessions.c.title,
    sessions.c.state,
    sessions.c.turn,
    sessions.c.labels,
    sessions.c.model,
    sessions.c.parent_id,
    sessions.c.created_at,
    sessions.c.updated_at,
    select(func.coalesce(func.sum(cost_totals.c.nano_usd), 0))
    .where(cost_totals.c.session_id == sessions.c.id)
    .scalar_subquery()
    .label("nano_usd"),
)

# Made once: putting a statement together costs more than running it. One more row than asked for tells whether there
# is a next page.
_NEWEST: Final = (
    select(*_SHOWN)
    .where(sessions.c.principal == bindparam("whose"))
    .order_by(sessions.c.created_at.desc(), sessions.c.id.desc())
    .limit(bindparam("most"))
)

_EXTENT: Final = select(func.count(), func.max(sessions.c.created_at)).where(sessions.c.principal == bindparam("whose"))

_SEQUENCES: Final = (
    select(sessions.c.id, counters.c.last_seq)
    .join(counters, counters.c.session_id == sessions.c.id)
    .where(sessions.c.principal == bindparam("whose"), sessions.c.id.in_(bindparam("ids", expanding=True)))
)


class Listing(Room):
    """Listing a principal's sessions."""

    async def sessions(self, principal: str, request: ListRequest) -> SessionPage:
        """One page of the principal's sessions, newest first.

        A cursor names a place, not a page number: sessions that are created meanwhile shift nothing.

        Raises:
            RookeryError: ``invalid_argument`` for an unknown state or a cursor that no list answered with.
        """
        query = _query(request)
        given = {"whose": principal, "most": request.limit + 1}

        def body(connection: Connection) -> list[dict[str, Any]]:
            rows = [dict(row._mapping) for row in connection.execute(query, given)]
            for row in rows:
                row["usd"] = row.pop("nano_usd") / NANO_USD
            return rows

        found = await self._database.read(body)
        page = tuple(SessionSummary.model_validate(row) for row in found[: request.limit])
        return SessionPage(sessions=page, cursor=_cursor_after(page[-1]) if len(found) > request.limit else None)

    async def heads(self, principal: str, session_ids: Sequence[str]) -> Heads:
        """What tells that something changed: in the list of the principal's sessions, and in some of them."""

        def body(connection: Connection) -> Heads:
            count, newest = connection.execute(_EXTENT, {"whose": principal}).one()
            found = (
                connection.execute(_SEQUENCES, {"whose": principal, "ids": list(session_ids)}) if session_ids else ()
            )
            return Heads(listed=f"{count}:{newest}", sequences={row.id: row.last_seq for row in found})

        return await self._database.read(body)


def _query(request: ListRequest) -> Select[Any]:
    query = _NEWEST
    if request.state is not None:
        query = query.where(sessions.c.state == _state(request.state))
    for key, value in request.labels.items():
        labelled = select(session_labels.c.session_id).where(
            session_labels.c.key == key, session_labels.c.value == value
        )
        query = query.where(sessions.c.id.in_(labelled))
    if request.parent_id is not None:
        query = query.where(sessions.c.parent_id == request.parent_id)
    if request.cursor is not None:
        query = query.where(tuple_(sessions.c.created_at, sessions.c.id) < tuple_(*_place(request.cursor)))
    return query


def _state(name: str) -> SessionState:
    try:
        return SessionState(name)
    except ValueError:
        states = ", ".join(SessionState)
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"state: must be one of {states}") from None


def _cursor_after(last: SessionSummary) -> str:
    place = f"{(last.created_at - _EPOCH) // timedelta(microseconds=1)}:{last.session_id}"
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[datetime, str]:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        place = _CURSOR.fullmatch(base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii"))
        if place is not None:
            return _EPOCH + timedelta(microseconds=int(place[1])), place[2]
    except (ValueError, binascii.Error, OverflowError):
        pass
    raise RookeryError(
        ErrorCode.INVALID_ARGUMENT, "cursor: pass the cursor of an earlier page as it came, or none for the first page"
    )
