"""Everything that is shown of one session, read at one moment.

One transaction in the place of six: it costs a sixth of the way to the database, and no event can fall between what
is read first and what is read last.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, select

from server.budgets import Cap, Scope, Standing
from server.models import (
    ApprovalRecord,
    ApprovalStatus,
    CheckpointRecord,
    Cost,
    Event,
    Record,
    SessionRecord,
    TurnRecord,
)
from server.store.accounts import Account, account_id, standing_in
from server.store.ledger import cost_of, totals
from server.store.prepared import Prepared
from server.store.room import Room, not_found, owned_session, record
from server.store.tables import approvals, budget_accounts, checkpoints, cost_totals, events, turns


class Portrait(Record):
    """One session at one moment."""

    session: SessionRecord
    turn: TurnRecord
    """The turn asked for; of a fork that had none yet an empty one."""
    cost: Cost
    standing: Standing
    """Its own account."""
    latest: Event | None
    """The newest event of its log."""
    pending: tuple[ApprovalRecord, ...] = ()
    """The turn's questions that can still be answered; only while the session is busy."""
    checkpoints: tuple[CheckpointRecord, ...] = ()
    """All of them, if asked for."""


class Portraits(Room):
    """Sessions with all that is known of them."""

    async def portrait(
        self, principal: str, session_id: str, *, turn: int | None = None, with_checkpoints: bool = False
    ) -> Portrait:
        """The principal's session.

        Args:
            turn: which turn; None: the latest.
            with_checkpoints: whether to read those too.

        Raises:
            RookeryError: ``session_not_found``, for a foreign id as for a missing one, and for a missing turn.
        """
        return await self._database.glance(_portrait, principal, session_id, turn, with_checkpoints, self._now())


_TURN: Final = Prepared(
    select(turns).where(turns.c.session_id == bindparam("key"), turns.c.number == bindparam("number"))
)
_SUMS: Final = totals(cost_totals, cost_totals.c.session_id == bindparam("key")).subquery()
_SPENDING: Final = Prepared(
    select(_SUMS, budget_accounts).select_from(
        _SUMS.outerjoin(budget_accounts, budget_accounts.c.id == bindparam("account"))
    )
)
_LATEST: Final = Prepared(
    select(events).where(events.c.session_id == bindparam("key")).order_by(events.c.seq.desc()).limit(1)
)
_PENDING: Final = Prepared(
    select(approvals)
    .where(
        approvals.c.session_id == bindparam("key"),
        approvals.c.turn == bindparam("number"),
        approvals.c.status == ApprovalStatus.PENDING,
        approvals.c.expires_at > bindparam("now", type_=approvals.c.expires_at.type),
    )
    .order_by(approvals.c.created_at, approvals.c.id)
)
_CHECKPOINTS: Final = Prepared(
    select(checkpoints)
    .where(checkpoints.c.session_id == bindparam("key"))
    .order_by(checkpoints.c.created_at, checkpoints.c.id)
)


def _portrait(
    connection: Connection, principal: str, session_id: str, number: int | None, with_checkpoints: bool, now: datetime
) -> Portrait:
    session = owned_session(connection, principal, session_id)
    key = {"key": session_id}
    turn = _turn(connection, session, session.turn if number is None else number)
    latest = _LATEST.first(connection, key)
    pending: tuple[ApprovalRecord, ...] = ()
    taken: tuple[CheckpointRecord, ...] = ()
    if session.state.is_busy:
        rows = _PENDING.rows(connection, {**key, "number": turn.number, "now": now})
        pending = tuple(record(ApprovalRecord, row) for row in rows)
    if with_checkpoints:
        taken = tuple(record(CheckpointRecord, row) for row in _CHECKPOINTS.rows(connection, key))
    account = _account(session)
    spending = _SPENDING.rows(connection, {**key, "account": account.id})[0]
    return Portrait.model_construct(
        session=session,
        turn=turn,
        cost=cost_of(spending),
        standing=standing_in(None if spending.id is None else spending, account),
        latest=None if latest is None else record(Event, latest),
        pending=pending,
        checkpoints=taken,
    )


def _account(session: SessionRecord) -> Account:
    cap = Cap(nano_usd=session.budget_nano_usd, tokens=session.budget_tokens)
    return Account(account_id(Scope.SESSION, session.id), Scope.SESSION, cap)


def _turn(connection: Connection, session: SessionRecord, number: int) -> TurnRecord:
    row = _TURN.first(connection, {"key": session.id, "number": number})
    if row is not None:
        return record(TurnRecord, row)
    if number == session.turn == 0:
        return TurnRecord(session_id=session.id, number=0, prompt="", started_at=session.created_at)
    raise not_found()
