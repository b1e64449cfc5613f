"""The one way a session changes its state: a compare-and-set UPDATE with its event, in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, update

from server.errors import ErrorCode, RookeryError
from server.models import TRANSITIONS, EventKind, SessionRecord, SessionState
from server.store.allotments import allot, release
from server.store.events import append
from server.store.room import Fields, session_row
from server.store.tables import sessions

_FIXED: Final = frozenset(
    {
        "id",
        "principal",
        "root_id",
        "parent_id",
        "forked_from",
        "request_id",
        "created_at",
        "state",
        "turn",
        "updated_at",
        "labels",
    }
)
"""Who a session is, whose it is and where it came from never changes; state, turn and time change by moves only, and
labels by :meth:`~server.store.sessions.Sessions.update_session`, which keeps their index."""

CAPS: Final = frozenset({"budget_nano_usd", "budget_tokens"})
"""Fields that bound what a session may spend: when they change, so does what its parent has set aside for it."""


def move(
    connection: Connection,
    session_id: str,
    to: SessionState,
    *,
    at: datetime,
    expect: Collection[SessionState] | None = None,
    data: Mapping[str, Any] | None = None,
    fields: Fields | None = None,
) -> SessionRecord:
    """Move the session to ``to`` from a state that allows it, and log the move.

    Raises:
        RookeryError: ``session_not_found``, ``session_ended``, ``session_busy``.
    """
    session = session_row(connection, session_id, lock=True)
    if to not in TRANSITIONS[session.state] or (expect is not None and session.state not in expect):
        raise refusal(session)
    return apply(connection, session, to, at=at, data=data, fields=fields)


def apply(
    connection: Connection,
    session: SessionRecord,
    to: SessionState,
    *,
    at: datetime,
    data: Mapping[str, Any] | None = None,
    fields: Fields | None = None,
    turn: int | None = None,
) -> SessionRecord:
    """Move a session that was read under lock in this transaction; the UPDATE still insists on the state it had.

    The event STATE holds ``from``, ``to`` and what ``data`` says; ``turn`` is the number of a turn that begins.

    Raises:
        RookeryError: ``budget_exceeded``: its parent has not that much left for a cap that is raised.
    """
    changes = checked(fields or {}) | {"state": to, "updated_at": at}
    if turn is not None:
        changes["turn"] = turn
    if to.is_terminal and session.ended_at is None:
        changes.setdefault("ended_at", at)
    moved = connection.execute(
        update(sessions).where(sessions.c.id == session.id, sessions.c.state == session.state).values(changes)
    )
    if moved.rowcount != 1:
        raise refusal(session)
    record = session.model_copy(update=changes)
    if to.is_terminal:
        release(connection, record)
    elif CAPS & set(changes):
        allot(connection, record)
    entry = {**(data or {}), "from": session.state, "to": to}
    append(connection, session.id, record.turn, [(EventKind.STATE, entry)], at)
    return record


def checked(fields: Fields) -> dict[str, Any]:
    """The fields, if all of them may change."""
    refused = set(fields) - (set(SessionRecord.model_fields) - _FIXED)
    if refused:
        raise TypeError(f"no mutable fields of a session: {', '.join(sorted(refused))}")
    return dict(fields)


def refusal(session: SessionRecord) -> RookeryError:
    """Why a session in this state does not do what was asked."""
    if session.state.is_terminal:
        return RookeryError(
            ErrorCode.SESSION_ENDED,
            f"The session has {session.state.value}. Its transcript, files and costs can still be read; "
            "fork_session or spawn_agent goes on from here.",
        )
    if session.state.is_busy:
        return RookeryError(
            ErrorCode.SESSION_BUSY,
            f"The session is {session.state.value}. Wait for it with wait_for_sessions, or stop it with "
            "interrupt_session.",
        )
    return RookeryError(ErrorCode.SESSION_BUSY, "The session just went idle. Look at it again and repeat the call.")
