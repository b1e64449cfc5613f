"""Turns: beginning one exactly once, and ending it together with the session's state."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from server.errors import ErrorCode, RookeryError
from server.models import TRANSITIONS, EventKind, SessionState, TurnRecord
from server.models import SessionRecord as Session
from server.store import moves
from server.store.events import Heard, append, note_heard
from server.store.kinship import check_siblings
from server.store.room import Fields, Room, changed_one, columns, not_found, record, session_row
from server.store.sessions import started_data
from server.store.tables import servers, turns


class Turns(Room):
    """The turns of sessions."""

    async def begin_turn(
        self,
        session_id: str,
        turn: TurnRecord,
        *,
        owner: str | None = None,
        budget_nano_usd: int | None = None,
        budget_tokens: int | None = None,
        siblings: int | None = None,
    ) -> tuple[TurnRecord, bool]:
        """Start the next turn of an idle session: ``idle → running``, its row, and the events STATE and TURN_STARTED.

        A ``request_id`` that this session has seen changes nothing, whatever state it is in.

        Args:
            session_id: the session.
            turn: what to write; its session and number are set here.
            owner: the server that runs the turn. It gets the lease, unless the agent process of this session lives
                in another server that is registered.
            budget_nano_usd: new total cap of the session; None leaves the cap as it is.
            budget_tokens: the same in tokens.
            siblings: how many children of the session's parent may be at work, this one included; None: any number.

        Returns:
            The turn, and whether it is new.

        Raises:
            RookeryError: ``session_not_found``; ``session_busy`` while a turn runs or another server holds the
                session; ``session_ended``; ``budget_exceeded``: its parent has not that much left to give;
                ``policy_denied``: too many siblings are at work.
        """
        caps = {"budget_nano_usd": budget_nano_usd, "budget_tokens": budget_tokens}
        given = {name: cap for name, cap in caps.items() if cap is not None}
        begun, is_new = await self._database.write(_begin, session_id, turn, owner, given, siblings, self._now())
        if is_new:
            self._changed(session_id)
        return begun, is_new

    async def end_turn(
        self, turn: TurnRecord, *, to: SessionState, heard: Heard | None = None, **session_fields: Any
    ) -> Session:
        """Write the turn's end, TURN_ENDED, and the session's move to ``to`` with STATE, in one transaction.

        ``ended_at`` is set to now when the turn has none; ``heard`` says how far the agent's output was taken.

        Raises:
            RookeryError: ``session_not_found``; ``session_busy`` or ``session_ended`` when this turn is no longer
                the one that runs, for instance because the janitor ended it.
        """
        ended = await self._database.write(_end, turn, to, session_fields, self._now(), heard)
        self._changed(turn.session_id)
        return ended

    async def reopen_turn(self, session_id: str, *, owner: str) -> tuple[Session, TurnRecord]:
        """Take up the turn of a session that sleeps over a question: ``awaiting_approval → running``, its end undone.

        Raises:
            RookeryError: ``session_not_found``; ``session_busy`` or ``session_ended`` when it sleeps no longer.
        """
        reopened = await self._database.write(_reopen, session_id, owner, self._now())
        self._changed(session_id)
        return reopened

    async def turn_by_request(self, session_id: str, request_id: str) -> TurnRecord | None:
        """The turn that this request began, if the session has seen it before."""
        query = select(turns).where(turns.c.session_id == session_id, turns.c.request_id == request_id)

        def body(connection: Connection) -> TurnRecord | None:
            row = connection.execute(query).first()
            return None if row is None else record(TurnRecord, row)

        return await self._database.read(body)

    async def update_turn(self, session_id: str, number: int, **fields: Any) -> None:
        """Set fields of a turn that runs, such as its ``checkpoint_id``.

        Raises:
            RookeryError: ``session_not_found`` when the session, or the turn in it, does not exist.
        """
        fixed = {"session_id", "number", "origin", "prompt", "request_id", "started_at"} & set(fields)
        if fixed:
            raise TypeError(f"no mutable fields of a turn: {', '.join(sorted(fixed))}")
        query = update(turns).where(turns.c.session_id == session_id, turns.c.number == number).values(fields)
        if not await self._database.write(changed_one, query):
            raise not_found()
        self._changed(session_id)

    async def turn(self, session_id: str, number: int) -> TurnRecord:
        """One turn.

        Raises:
            RookeryError: ``session_not_found`` when the session, or the turn in it, does not exist.
        """
        query = select(turns).where(turns.c.session_id == session_id, turns.c.number == number)

        def body(connection: Connection) -> TurnRecord:
            row = connection.execute(query).first()
            if row is None:
                raise not_found()
            return record(TurnRecord, row)

        return await self._database.read(body)

    async def turns(self, session_id: str) -> list[TurnRecord]:
        """All turns of a session, oldest first."""
        query = select(turns).where(turns.c.session_id == session_id).order_by(turns.c.number)
        return await self._database.read(
            lambda connection: [record(TurnRecord, row) for row in connection.execute(query)]
        )


def _begin(
    connection: Connection,
    session_id: str,
    turn: TurnRecord,
    owner: str | None,
    caps: Fields,
    siblings: int | None,
    at: datetime,
) -> tuple[TurnRecord, bool]:
    session = session_row(connection, session_id, lock=True)
    if turn.request_id is not None:
        seen = connection.execute(
            select(turns).where(turns.c.session_id == session_id, turns.c.request_id == turn.request_id)
        ).first()
        if seen is not None:
            return record(TurnRecord, seen), False
    if session.state is not SessionState.IDLE:
        raise moves.refusal(session)
    check_siblings(connection, session, siblings)
    changes: dict[str, Any] = dict(caps)
    if owner is not None:
        if session.owner not in (None, owner) and session.resident and _is_registered(connection, session.owner):
            raise RookeryError(
                ErrorCode.SESSION_BUSY, "Another Rookery server holds this session. Try again in a moment."
            )
        changes["owner"] = owner
    begun = turn.model_copy(update={"session_id": session_id, "number": session.turn + 1})
    moves.apply(connection, session, SessionState.RUNNING, at=at, fields=changes, turn=begun.number)
    connection.execute(insert(turns).values(columns(begun)))
    append(connection, session_id, begun.number, [(EventKind.TURN_STARTED, started_data(begun))], at)
    return begun, True


def _reopen(connection: Connection, session_id: str, owner: str, at: datetime) -> tuple[Session, TurnRecord]:
    asleep = {SessionState.AWAITING_APPROVAL}
    fields = {"owner": owner}
    session = moves.move(connection, session_id, SessionState.RUNNING, at=at, expect=asleep, fields=fields)
    query = update(turns).where(turns.c.session_id == session_id, turns.c.number == session.turn)
    row = connection.execute(query.values(stop_reason=None, error=None, ended_at=None).returning(turns)).first()
    if row is None:
        raise not_found()
    return session, record(TurnRecord, row)


def _is_registered(connection: Connection, server_id: str | None) -> bool:
    return connection.execute(select(servers.c.id).where(servers.c.id == server_id)).first() is not None


def _end(
    connection: Connection, turn: TurnRecord, to: SessionState, fields: Fields, at: datetime, heard: Heard | None
) -> Session:
    session = session_row(connection, turn.session_id, lock=True)
    if to not in TRANSITIONS[session.state] or session.turn != turn.number:
        raise moves.refusal(session)
    ended = turn if turn.ended_at is not None else turn.model_copy(update={"ended_at": at})
    values = columns(ended)
    for fixed in ("session_id", "number", "origin", "prompt", "request_id", "started_at"):
        del values[fixed]
    open_turn = (turns.c.session_id == turn.session_id, turns.c.number == turn.number, turns.c.ended_at.is_(None))
    if connection.execute(update(turns).where(*open_turn).values(values)).rowcount != 1:
        raise moves.refusal(session)
    append(connection, turn.session_id, turn.number, [(EventKind.TURN_ENDED, _ended_data(ended))], at)
    if heard is not None:
        note_heard(connection, turn.session_id, heard, settled=True)
    return moves.apply(connection, session, to, at=at, fields=fields)


def _ended_data(turn: TurnRecord) -> dict[str, Any]:
    """What the event TURN_ENDED says: ``number``, ``stop_reason``, ``error``, ``denials`` and ``changed_files``."""
    return {
        "number": turn.number,
        "stop_reason": turn.stop_reason,
        "error": None if turn.error is None else turn.error.model_dump(mode="json"),
        "denials": turn.denials,
        "changed_files": list(turn.changed_files),
    }
