"""What a session sets aside for the children that it spawns.

A child's cap is taken from its parent's when it is spawned, and what it did not spend goes back when it ends. So
children that work side by side can never have been promised more than there is. ``held`` is what a child still has of
its allotment, neither spent nor reserved; a parent's ``allotted`` is the sum over its children. What a child reserves
and spends moves from there to the parent's own reserved and spent. A child that ends before children of its own keeps
what it promised them until they end too.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, bindparam, select, update

from server.budgets import Scope
from server.errors import ErrorCode, RookeryError
from server.models import NANO_USD, SessionRecord, SessionState
from server.store.accounts import account_id, rows_of, session_of
from server.store.prepared import AnyRow, Prepared
from server.store.room import SESSION, record
from server.store.tables import budget_accounts, sessions

Drawn = list[tuple[str, str, int, int]]
"""For each child in the line of a request, nearest first: its account, its parent's, and the nano-dollars and tokens
that came from its allotment."""

_TABLE: Final = budget_accounts.c
_MOVE_HELD: Final = Prepared(
    update(budget_accounts)
    .where(_TABLE.id == bindparam("key"))
    .values(held_nano_usd=_TABLE.held_nano_usd + bindparam("more"), held_tokens=_TABLE.held_tokens + bindparam("most"))
)
_MOVE_ALLOTTED: Final = Prepared(
    update(budget_accounts)
    .where(_TABLE.id == bindparam("key"))
    .values(
        allotted_nano_usd=_TABLE.allotted_nano_usd + bindparam("more"),
        allotted_tokens=_TABLE.allotted_tokens + bindparam("most"),
    )
)
_STATE: Final = Prepared(select(sessions.c.state).where(sessions.c.id == bindparam("key")))


def allot(connection: Connection, session: SessionRecord) -> None:
    """Set aside in the parent's account what a spawned child may still spend under its caps as they are now.

    For a child that is made, and for one whose caps were changed. Sessions without a parent, and forks, have none.

    Raises:
        RookeryError: ``budget_exceeded``: the parent has not that much left.
    """
    if session.parent_id is None or session.forked_from is not None or session.state.is_terminal:
        return
    own, parent = account_id(Scope.SESSION, session.id), account_id(Scope.SESSION, session.parent_id)
    rows = rows_of(connection, sorted((own, parent)))
    caps = SESSION.first(connection, {"key": session.parent_id})
    dollars = _wanted(session.budget_nano_usd, rows[own], "nano_usd") - rows[own].held_nano_usd
    tokens = _wanted(session.budget_tokens, rows[own], "tokens") - rows[own].held_tokens
    if caps is not None:
        ended = SessionState(caps.state).is_terminal
        _check(caps.budget_nano_usd, rows[parent], "nano_usd", dollars, ended=ended)
        _check(caps.budget_tokens, rows[parent], "tokens", tokens, ended=ended)
    _move(connection, own, parent, dollars, tokens)


def release(connection: Connection, session: SessionRecord) -> None:
    """Give back what a child that ends has not spent. Idempotent."""
    if session.parent_id is None or session.forked_from is not None:
        return
    own, parent = account_id(Scope.SESSION, session.id), account_id(Scope.SESSION, session.parent_id)
    row = rows_of(connection, sorted((own, parent)))[own]
    more = max(0, row.held_nano_usd - row.allotted_nano_usd)
    most = max(0, row.held_tokens - row.allotted_tokens)
    _move(connection, own, parent, -more, -most)
    above = SESSION.first(connection, {"key": session.parent_id})
    if above is not None and SessionState(above.state).is_terminal:
        # It kept this for its child alone.
        release(connection, record(SessionRecord, above))


def give_back(connection: Connection, drawn: Drawn, spent_nano_usd: int, spent_tokens: int) -> None:
    """Settle what was drawn from allotments: what was not spent of it is held again, unless the child has ended.

    More was spent than drawn where the input was estimated too low: then so much less is held.
    """
    lives = False
    for own, parent, nano_usd, tokens in drawn:
        row = _STATE.first(connection, {"key": session_of(own)})
        lives = lives or (row is not None and not SessionState(row.state).is_terminal)
        if not lives:
            continue
        held = rows_of(connection, sorted((own, parent)))[own]
        back = max(nano_usd - spent_nano_usd, -held.held_nano_usd) if nano_usd or held.held_nano_usd else 0
        most = max(tokens - spent_tokens, -held.held_tokens) if tokens or held.held_tokens else 0
        _move(connection, own, parent, back, most)


def _move(connection: Connection, own: str, parent: str, more: int, most: int) -> None:
    if more or most:
        _MOVE_HELD.change(connection, {"key": own, "more": more, "most": most})
        _MOVE_ALLOTTED.change(connection, {"key": parent, "more": more, "most": most})


def _wanted(cap: int | None, row: AnyRow, unit: str) -> int:
    """What the caps let a child still spend; nothing is set aside where there is no cap."""
    if cap is None:
        return 0
    return max(0, cap - int(getattr(row, f"spent_{unit}")) - int(getattr(row, f"reserved_{unit}")))


def _check(cap: int | None, row: AnyRow, unit: str, more: int, *, ended: bool) -> None:
    if cap is None or more <= 0:
        return
    used = sum(int(getattr(row, f"{part}_{unit}")) for part in ("spent", "reserved", "allotted"))
    left = 0 if ended else cap - used
    if more > left:
        shown = f"${max(0, left) / NANO_USD:.4f}" if unit == "nano_usd" else f"{max(0, left):,} tokens"
        name = "budget_usd" if unit == "nano_usd" else "budget_tokens"
        raise RookeryError(
            ErrorCode.BUDGET_EXCEEDED,
            f"The session that spawns has {shown} left to give: ask for less in {name}, end children that are done, "
            "or raise its own budget.",
        )
