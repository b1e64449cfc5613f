"""Sandboxes that run: a row for each, of which the line can be made that a dead server did not come to write.

The row holds the id of the next line. So a stretch of time is charged once, whoever comes to it first: the server that
meters it, the one that takes its agent over, or a janitor.

How far a dead server's sandbox ran is told by its last heartbeat, and a sandbox that outlives its server runs on from
there. Both by one clock, which may jump: then the bounds here hold, and it is charged for :data:`LONGEST_STRETCH` and
the time that it lasts without a server, at most (row B08).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, delete, func, or_, select, update

from server.leases import HEARTBEAT_S
from server.models import RunningSandbox, SandboxTime
from server.store.database import insert_for
from server.store.prepared import AnyRow, Prepared
from server.store.processes import moment
from server.store.tables import running_sandboxes, servers, sessions

STRETCH_S: Final = 60.0
"""How often a server writes down the time of a sandbox that runs."""

HEARTBEAT: Final = timedelta(seconds=HEARTBEAT_S)

LONGEST_STRETCH: Final = timedelta(seconds=STRETCH_S) + HEARTBEAT
"""More than this no living server leaves unwritten. The heartbeat is for a line that comes a little late."""

_TABLE: Final = running_sandboxes.c
_OF_OWNER: Final = running_sandboxes.outerjoin(servers, servers.c.id == _TABLE.owner)

_FIND: Final = Prepared(
    select(*_TABLE, servers.c.heartbeat_at)
    .select_from(_OF_OWNER)
    .where(_TABLE.session_id == bindparam("key"))
    .with_for_update(of=running_sandboxes)
)
_THIS: Final = and_(_TABLE.session_id == bindparam("session"), _TABLE.line_id == bindparam("line"))
_LEAVE: Final = Prepared(delete(running_sandboxes).where(_THIS))


def enter(connection: Connection, sandbox: RunningSandbox) -> SandboxTime | None:
    """Enter a sandbox that runs from now on; the line for what an earlier server of it did not write, if there is any.

    One that was entered already stays as it is.
    """
    now = moment(connection, sandbox.since)
    left = _FIND.first(connection, {"key": sandbox.session_id})
    if left is not None and left.line_id == sandbox.line_id:
        return None
    row = sandbox.model_copy(update={"since": now}).model_dump() | {"ends_by": None}
    _put(connection.dialect.name).change(connection, row)
    # A server that lives, and failed to write the last line, has left no sandbox to itself.
    return None if left is None else _lost_line(left, now, _ends_by(left, alone=left.owner != sandbox.owner))


def move_on(connection: Connection, line: SandboxTime, then: RunningSandbox | None) -> bool:
    """Go on to the next line of a sandbox, or take it out; False where it was not entered with this line any more."""
    this = {"session": line.session_id, "line": line.id}
    if then is None:
        return _LEAVE.change(connection, this) == 1
    values = this | {"next_line": then.line_id, "next_since": then.since}
    return _move(connection.dialect.name).change(connection, values) == 1


def lost_lines(connection: Connection, dead: Iterable[str], at: datetime) -> list[SandboxTime]:
    """Take out the sandboxes of dead servers, and of those that are not entered; the lines that are to be written.

    Of a sandbox that outlives its server, whose session has not been looked after yet, it is only noted how long it
    may run on: its agent may be taken over, and the time until then is charged by :func:`enter`.
    """
    now = moment(connection, at)
    gone = or_(_TABLE.owner.in_(dead), _TABLE.owner.not_in(select(servers.c.id)))
    query = (
        select(running_sandboxes, servers.c.heartbeat_at, sessions.c.owner.label("held_by"))
        .select_from(_OF_OWNER.outerjoin(sessions, sessions.c.id == _TABLE.session_id))
        .where(gone)
        .with_for_update(of=running_sandboxes)
    )
    lines = []
    for row in connection.execute(query).all():
        this, ends_by = _TABLE.line_id == row.line_id, _ends_by(row, alone=True)
        if row.lasts_s and row.held_by is not None and now < ends_by:
            if row.ends_by is None:
                connection.execute(update(running_sandboxes).where(this).values(ends_by=ends_by))
            continue
        connection.execute(delete(running_sandboxes).where(this))
        line = _lost_line(row, now, ends_by)
        if line is not None:
            lines.append(line)
    return lines


def _ends_by(row: AnyRow | Row[Any], *, alone: bool) -> datetime:
    """The latest moment until which a sandbox is charged that its server wrote nothing more of.

    Args:
        alone: whether it ran on without the server, if it can.
    """
    known: datetime | None = row.ends_by
    if known is not None:
        return known
    since: datetime = row.since
    unwritten = LONGEST_STRETCH
    if row.heartbeat_at is not None:
        unwritten = max(timedelta(), min(row.heartbeat_at - since, unwritten))
    # Its life may have been extended until just before the next heartbeat.
    return since + unwritten + (HEARTBEAT + timedelta(seconds=row.lasts_s) if alone and row.lasts_s else timedelta())


def _lost_line(row: AnyRow | Row[Any], now: datetime, ends_by: datetime) -> SandboxTime | None:
    end = min(now, ends_by)
    milliseconds = (end - row.since) // timedelta(milliseconds=1)
    if milliseconds <= 0:
        return None
    fields = row._asdict()
    sandbox = RunningSandbox.model_validate({name: fields[name] for name in RunningSandbox.model_fields})
    return sandbox.line(end, milliseconds)


@cache
def _put(dialect: str) -> Prepared:
    """Enters a sandbox in the place of what its session had."""
    statement = insert_for(dialect, running_sandboxes)
    new = {column.name: statement.excluded[column.name] for column in _TABLE if not column.primary_key}
    return Prepared(statement.on_conflict_do_update(index_elements=["session_id"], set_=new))


@cache
def _move(dialect: str) -> Prepared:
    """Goes on to the next line, by the clock of the heartbeats."""
    since: Any = bindparam("next_since", type_=_TABLE.since.type) if dialect == "sqlite" else func.now()
    return Prepared(update(running_sandboxes).where(_THIS).values(line_id=bindparam("next_line"), since=since))
