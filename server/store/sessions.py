"""Sessions: creating, finding, listing, moving, owning and deleting them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from server.errors import ErrorCode, RookeryError
from server.models import EventKind, SessionRecord, SessionState, TurnRecord
from server.store import moves
from server.store.allotments import allot
from server.store.database import insert_for
from server.store.events import append
from server.store.kinship import check_siblings
from server.store.room import Fields, Room, changed_one, columns, owned_session, record, session_row
from server.store.tables import commands, counters, servers, session_labels, sessions, turns

_BUSY = tuple(state for state in SessionState if state.is_busy)
_OVER = tuple(state for state in SessionState if state.is_terminal)


class Sessions(Room):
    """The sessions' rows. Every look-up on behalf of a caller is by (principal, id)."""

    async def create_session(
        self,
        session: SessionRecord,
        turn: TurnRecord | None,
        *,
        most_open: int | None = None,
        siblings: int | None = None,
    ) -> SessionRecord:
        """Write a session with its first turn and the events STATE and TURN_STARTED, as the intent to start it.

        Without a turn (a fork that is being filled) its turn number is 0 and there is no TURN_STARTED.

        A ``request_id`` that this principal used before changes nothing: the session it made is returned. The cap of
        a child that another session spawns is set aside in that one's budget.

        Args:
            session: what to write.
            turn: its first turn.
            most_open: how many sessions of its principal may not have ended; None: any number.
            siblings: how many children of its parent may be at work, this one included; None: any number.

        Raises:
            RookeryError: ``budget_exceeded``: the one that spawns it has not that much left; ``session_not_found``,
                ``session_ended``: it is gone, or has ended; ``too_many_sessions``: the principal has ``most_open``
                sessions that have not ended; ``policy_denied``: as many siblings are at work already;
                ``storage_unavailable``.
        """
        written = await self._database.write(_create, session, turn, most_open, siblings)
        if written.id == session.id:
            self._changed(written.id)
        return written

    async def session(self, principal: str, session_id: str) -> SessionRecord:
        """The principal's session.

        Raises:
            RookeryError: ``session_not_found``, for a foreign id as for a missing one.
        """
        return await self._database.read(owned_session, principal, session_id)

    async def session_for_server(self, session_id: str) -> SessionRecord:
        """A session, whoever's it is: for the server's own work, never for a caller's request.

        Raises:
            RookeryError: ``session_not_found``.
        """
        return await self._database.read(session_row, session_id)

    async def session_by_request(self, principal: str, request_id: str) -> SessionRecord | None:
        """The session that this request made, if it was seen before."""
        return await self._database.read(_by_request, principal, request_id)

    async def sandboxed_sessions(self) -> set[str]:
        """Ids of all sessions that have a sandbox, or are about to have one because a server holds them."""
        query = select(sessions.c.id).where(or_(sessions.c.sandbox.is_not(None), sessions.c.owner.is_not(None)))
        return await self._database.read(lambda connection: set(connection.execute(query).scalars()))

    async def sessions_in(
        self, states: Collection[SessionState], *, principal: str | None = None
    ) -> list[SessionRecord]:
        """All sessions in these states, oldest first; of all principals unless one is named."""
        query = select(sessions).where(sessions.c.state.in_(sorted(states)))
        if principal is not None:
            query = query.where(sessions.c.principal == principal)
        return await self._read_sessions(query.order_by(sessions.c.created_at, sessions.c.id))

    async def owned_sessions(self, owner: str) -> list[SessionRecord]:
        """All sessions whose lease this server holds, oldest first."""
        return await self._read_sessions(
            select(sessions).where(sessions.c.owner == owner).order_by(sessions.c.created_at, sessions.c.id)
        )

    async def unowned_work(self, dead: Collection[str] = ()) -> list[SessionRecord]:
        """Sessions that nobody looks after. For the janitor.

        Those are the ones whose owner is one of ``dead`` or has no row among the servers, and busy or resident ones
        without an owner. Ended ones need nobody.
        """
        lost = or_(sessions.c.owner.in_(sorted(dead)), sessions.c.owner.not_in(select(servers.c.id)))
        working = or_(sessions.c.state.in_(_BUSY), sessions.c.resident)
        left = or_(lost, and_(sessions.c.owner.is_(None), working))
        query = select(sessions).where(left, sessions.c.state.not_in(_OVER)).order_by(sessions.c.created_at)
        return await self._read_sessions(query)

    async def ended_before(self, at: datetime) -> list[SessionRecord]:
        """Ended and failed sessions that came to their end before ``at``, oldest first. For retention."""
        over = (SessionState.ENDED, SessionState.FAILED)
        query = select(sessions).where(sessions.c.ended_at < at, sessions.c.state.in_(over))
        return await self._read_sessions(query.order_by(sessions.c.ended_at))

    async def move(
        self,
        session_id: str,
        to: SessionState,
        *,
        expect: Collection[SessionState] | None = None,
        data: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> SessionRecord:
        """Move a session to another state, if :data:`~server.models.TRANSITIONS` and ``expect`` allow it.

        Args:
            session_id: the session.
            to: the new state. A terminal one sets ``ended_at`` too.
            expect: states that it may come from; by default all that the table of moves allows.
            data: what the event STATE says besides ``from`` and ``to``.
            **fields: fields of the session to set in the same UPDATE.

        Raises:
            RookeryError: ``session_not_found``, ``session_ended``, ``session_busy`` when the move is refused.
        """
        moved = await self._database.write(
            moves.move, session_id, to, at=self._now(), expect=expect, data=data, fields=fields
        )
        self._changed(session_id)
        return moved

    async def update_session(self, session_id: str, **fields: Any) -> SessionRecord:
        """Set fields of a session without a change of its state.

        Raises:
            RookeryError: ``session_not_found``; ``budget_exceeded``: its parent has not that much left to give.
        """
        updated = await self._database.write(_update, session_id, fields, self._now())
        self._changed(session_id)
        return updated

    async def claim(self, session_id: str, owner: str | None, *, expect_owner: str | None) -> bool:
        """Take over (or give up, with None) the lease of a session; False when ``expect_owner`` has it no longer."""
        held = sessions.c.owner.is_(None) if expect_owner is None else sessions.c.owner == expect_owner
        query = update(sessions).where(sessions.c.id == session_id, held).values(owner=owner, updated_at=self._now())
        claimed = await self._database.write(changed_one, query)
        if claimed:
            self._changed(session_id)
        return claimed

    async def delete_session(self, principal: str, session_id: str) -> None:
        """Delete an ended or failed session with all that belongs to it, except what it cost.

        Raises:
            RookeryError: ``session_not_found``; ``session_busy`` while it is neither ended nor failed.
        """
        await self._database.write(_delete, principal, session_id)
        self._changed(session_id)

    async def _read_sessions(self, query: Any) -> list[SessionRecord]:
        return await self._database.read(
            lambda connection: [record(SessionRecord, row) for row in connection.execute(query)]
        )


def _create(
    connection: Connection,
    session: SessionRecord,
    turn: TurnRecord | None,
    most_open: int | None,
    siblings: int | None,
) -> SessionRecord:
    if session.request_id is not None:
        seen = _by_request(connection, session.principal, session.request_id)
        if seen is not None:
            return seen
    if most_open is not None:
        _require_room(connection, session.principal, most_open)
    if session.parent_id is not None and session.forked_from is None:
        # Locked, so that one that ends at the same moment leaves no child behind that nobody pays for.
        parent = session_row(connection, session.parent_id, lock=True)
        if parent.state.is_terminal:
            raise moves.refusal(parent)
    check_siblings(connection, session, siblings)
    session = session.model_copy(update={"state": SessionState.STARTING, "turn": 0 if turn is None else 1})
    statement = insert_for(connection.dialect.name, sessions).values(columns(session))
    if session.request_id is not None:
        # On Postgres another process may have written the same request since the look above.
        statement = statement.on_conflict_do_nothing(index_elements=["principal", "request_id"])
    if connection.execute(statement.returning(sessions.c.id)).first() is None:
        seen = _by_request(connection, session.principal, session.request_id or "")
        assert seen is not None, "the conflict was with this request"
        return seen
    _write_labels(connection, session.id, session.labels)
    connection.execute(insert(counters), {"session_id": session.id})
    allot(connection, session)
    entries: list[tuple[EventKind, dict[str, Any]]] = [(EventKind.STATE, {"from": None, "to": SessionState.STARTING})]
    if turn is not None:
        begun = turn.model_copy(update={"session_id": session.id, "number": 1})
        connection.execute(insert(turns).values(columns(begun)))
        entries.append((EventKind.TURN_STARTED, started_data(begun)))
    append(connection, session.id, session.turn, entries, session.created_at)
    return session


def _require_room(connection: Connection, principal: str, most_open: int) -> None:
    terminal = [state for state in SessionState if state.is_terminal]
    mine = select(func.count()).where(sessions.c.principal == principal, sessions.c.state.not_in(terminal))
    if connection.execute(mine).scalar_one() >= most_open:
        raise RookeryError(
            ErrorCode.TOO_MANY_SESSIONS,
            f"This account has {most_open} sessions that have not ended, which is its most: end some with end_session.",
        )


def started_data(turn: TurnRecord) -> dict[str, Any]:
    """What the event TURN_STARTED says: ``number``, ``origin`` and ``prompt``."""
    return {"number": turn.number, "origin": turn.origin, "prompt": turn.prompt}


def _by_request(connection: Connection, principal: str, request_id: str) -> SessionRecord | None:
    row = connection.execute(
        select(sessions).where(sessions.c.principal == principal, sessions.c.request_id == request_id)
    ).first()
    return None if row is None else record(SessionRecord, row)


def _write_labels(connection: Connection, session_id: str, labels: Mapping[str, str]) -> None:
    if labels:
        rows = [{"session_id": session_id, "key": key, "value": value} for key, value in labels.items()]
        connection.execute(insert(session_labels), rows)


def _update(connection: Connection, session_id: str, fields: Fields, at: datetime) -> SessionRecord:
    session = session_row(connection, session_id, lock=True)
    labels = fields.get("labels")
    changes = moves.checked({name: value for name, value in fields.items() if name != "labels"}) | {"updated_at": at}
    if labels is not None:
        changes["labels"] = dict(labels)
        connection.execute(delete(session_labels).where(session_labels.c.session_id == session_id))
        _write_labels(connection, session_id, labels)
    connection.execute(update(sessions).where(sessions.c.id == session_id).values(changes))
    updated = session.model_copy(update=changes)
    if moves.CAPS & set(changes):
        allot(connection, updated)
    return updated


def _delete(connection: Connection, principal: str, session_id: str) -> None:
    session = owned_session(connection, principal, session_id)
    if not session.state.is_terminal:
        raise RookeryError(ErrorCode.SESSION_BUSY, "The session has not ended. End it first, then delete it.")
    connection.execute(delete(sessions).where(sessions.c.id == session_id))
    # A command's answer must outlive the session that it deleted; what was said in it must not.
    connection.execute(update(commands).where(commands.c.session_id == session_id).values(payload={}))
