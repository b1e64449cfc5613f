"""What all rooms of the store share: the database, the clock, and who listens to changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

import structlog
from pydantic import BaseModel
from sqlalchemy import Connection, Executable, Row, UpdateBase, bindparam, select

from server.clock import Clock
from server.errors import ErrorCode, RookeryError
from server.models import SessionRecord
from server.store.database import Database
from server.store.prepared import AnyRow, Prepared
from server.store.tables import sessions

R = TypeVar("R", bound=BaseModel)

_OF_SESSION: Final = select(sessions).where(sessions.c.id == bindparam("key"))
SESSION: Final = Prepared(_OF_SESSION)
_LOCKED_SESSION: Final = Prepared(_OF_SESSION.with_for_update())
_OWNED_SESSION: Final = Prepared(_OF_SESSION.where(sessions.c.principal == bindparam("whose")))

_log = structlog.get_logger(__name__)


class Room:
    """Base of the store's themes.

    Attributes:
        listeners: called with a session's id after each commit of this process that changed it or added to it.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.listeners: list[Callable[[str], None]] = []

    def _changed(self, session_id: str) -> None:
        for listener in tuple(self.listeners):
            try:
                listener(session_id)
            except Exception:
                # The change is committed: a listener's fault must not look like a failed write.
                _log.exception("store_listener_failed", session_id=session_id)

    def _now(self) -> datetime:
        return self._clock.now()


def record(kind: type[R], row: AnyRow | Row[Any]) -> R:
    """The record that a row of a table with the same columns holds."""
    return kind.model_validate(row._asdict())


def columns(value: BaseModel) -> dict[str, Any]:
    """The columns of a record: its fields, nested records as JSON-ready values, enumerations as their words."""
    return {name: _plain(getattr(value, name)) for name in type(value).model_fields}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def execute(connection: Connection, statement: Executable) -> None:
    """A whole transaction of one statement."""
    connection.execute(statement)


def changed_one(connection: Connection, statement: UpdateBase) -> bool:
    """A whole transaction of one compare-and-set: whether it found its row as expected."""
    return connection.execute(statement).rowcount == 1


def not_found() -> RookeryError:
    """One answer for a missing session and for one of somebody else: neither tells which."""
    return RookeryError(
        ErrorCode.SESSION_NOT_FOUND, "There is no such session. list_sessions shows the sessions that exist."
    )


def session_row(connection: Connection, session_id: str, *, lock: bool = False) -> SessionRecord:
    """The session, locked till the transaction's end if asked for (SQLite's writer is alone anyway).

    Raises:
        RookeryError: ``session_not_found``.
    """
    row = (_LOCKED_SESSION if lock else SESSION).first(connection, {"key": session_id})
    if row is None:
        raise not_found()
    return record(SessionRecord, row)


def owned_session(connection: Connection, principal: str, session_id: str) -> SessionRecord:
    """The session, if it is the principal's.

    Raises:
        RookeryError: ``session_not_found``.
    """
    row = _OWNED_SESSION.first(connection, {"key": session_id, "whose": principal})
    if row is None:
        raise not_found()
    return record(SessionRecord, row)


Fields = Mapping[str, Any]
