"""The accounts that caps stand on: which ones a session spends from, and how they stand (see :mod:`server.budgets`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Final

from sqlalchemy import Connection, and_, bindparam, select

from server.budgets import Cap, Caps, Scope, Standing
from server.store.database import insert_for
from server.store.prepared import AnyRow, Prepared
from server.store.tables import budget_accounts, sessions
from server.store.tables import tokens as api_tokens

MAX_ANCESTORS: Final = 64
"""Deepest tree of sessions that is followed; spawning stops far earlier."""

AMOUNTS: Final = (
    "spent_nano_usd",
    "reserved_nano_usd",
    "spent_tokens",
    "reserved_tokens",
    "allotted_nano_usd",
    "allotted_tokens",
    "held_nano_usd",
    "held_tokens",
    "warned",
)
"""The numbers of an account."""

_CAPPED_TOKEN: Final = and_(sessions.c.token_id == api_tokens.c.id, api_tokens.c.budget_nano_usd.is_not(None))
_SESSION: Final = Prepared(
    select(
        sessions.c.parent_id,
        sessions.c.forked_from,
        sessions.c.budget_nano_usd,
        sessions.c.budget_tokens,
        api_tokens.c.id.label("token_id"),
        api_tokens.c.budget_nano_usd.label("token_nano_usd"),
    )
    .select_from(sessions.outerjoin(api_tokens, _CAPPED_TOKEN))
    .where(sessions.c.id == bindparam("key"))
)
_TOKEN: Final = Prepared(
    select(api_tokens.c.id, api_tokens.c.budget_nano_usd)
    .join(sessions, _CAPPED_TOKEN)
    .where(sessions.c.id == bindparam("key"))
)
_ACCOUNT: Final = Prepared(select(budget_accounts).where(budget_accounts.c.id == bindparam("key")))


@cache
def _locked(count: int) -> Prepared:
    """Reads so many accounts, in the order of their ids, and locks them."""
    those = budget_accounts.c.id.in_([bindparam(f"id_{number}") for number in range(count)])
    return Prepared(select(budget_accounts).where(those).order_by(budget_accounts.c.id).with_for_update())


@cache
def _open(dialect: str) -> Prepared:
    """Opens an account, unless it is there."""
    return Prepared(insert_for(dialect, budget_accounts).on_conflict_do_nothing(index_elements=["id"]))


@dataclass(frozen=True)
class Account:
    """One account that a session spends from.

    Args:
        id: ``scope:key``.
        scope: what kind it is.
        cap: the most that it may spend.
        feeds: the account of the spawned child through which the spending comes; None for the session's own account
            and for those that no allotment is taken from.
    """

    id: str
    scope: Scope
    cap: Cap
    feeds: str | None = None


def accounts_of(
    connection: Connection, *, session_id: str, root_id: str, principal: str, at: datetime, caps: Caps
) -> list[Account]:
    """The accounts that a session spends from, in one order for all, so that no two claims wait for each other."""
    found: list[Account] = []
    below: str | None = None
    lineage = _lineage(connection, session_id)
    for member in lineage:
        tokens = caps.session.tokens if member.budget_tokens is None else member.budget_tokens
        cap = Cap(nano_usd=member.budget_nano_usd, tokens=tokens)
        key = account_id(Scope.SESSION, member.id)
        found.append(Account(key, Scope.SESSION, cap, feeds=below if member.fed else None))
        below = key
    found.append(Account(account_id(Scope.TREE, root_id), Scope.TREE, caps.tree))
    found.append(Account(account_id(Scope.PRINCIPAL, principal), Scope.PRINCIPAL, caps.principal))
    found.append(Account(day_id(principal, at), Scope.DAY, caps.day))
    if lineage[0].token is not None:
        found.append(lineage[0].token)
    return sorted(found, key=lambda account: account.id)


def token_accounts(connection: Connection, session_id: str) -> list[Account]:
    """The account of the API token that a session was spawned with, where that has a cap."""
    row = _TOKEN.first(connection, {"key": session_id})
    return [] if row is None else [_token_account(row.id, row.budget_nano_usd)]


def _token_account(token_id: str, nano_usd: int) -> Account:
    return Account(account_id(Scope.TOKEN, token_id), Scope.TOKEN, Cap(nano_usd=nano_usd))


@dataclass(frozen=True)
class _Member:
    id: str
    budget_nano_usd: int | None
    budget_tokens: int | None
    fed: bool
    """Whether the one before it in the line was spawned by it, and so spends from an allotment of it."""
    token: Account | None
    """The account of the API token that it was spawned with, where that has a cap."""


def _lineage(connection: Connection, session_id: str) -> list[_Member]:
    """A session and those that it was spawned under, each with its caps.

    A fork is not charged to the session it was forked from, which may have ended with its budget spent, but to those
    which that one was spawned under.
    """
    found: list[_Member] = []
    current: str | None = session_id
    charged, spawned = True, False
    for _ in range(MAX_ANCESTORS):
        if current is None:
            break
        row = _SESSION.first(connection, {"key": current})
        if charged:
            dollars, tokens = (None, None) if row is None else (row.budget_nano_usd, row.budget_tokens)
            token = None
            if row is not None and row.token_id is not None:
                token = _token_account(row.token_id, row.token_nano_usd)
            found.append(_Member(current, dollars, tokens, spawned, token))
        if row is None:
            break
        # Only who was spawned directly by a member of the line has an allotment from it; a fork has none.
        spawned = charged and row.forked_from is None
        charged = row.forked_from is None
        current = row.parent_id
    return found


def rows_of(connection: Connection, ids: Sequence[str]) -> Mapping[str, AnyRow]:
    """The rows of accounts, locked. Those that are not there yet are opened."""
    statement, values = _locked(len(ids)), {f"id_{number}": key for number, key in enumerate(ids)}
    rows = {row.id: row for row in statement.rows(connection, values)}
    if len(rows) < len(set(ids)):
        opened(connection, ids)
        rows = {row.id: row for row in statement.rows(connection, values)}
    return rows


def opened(connection: Connection, ids: Sequence[str]) -> None:
    """Open accounts that are not there yet."""
    zero = dict.fromkeys(AMOUNTS, 0)
    _open(connection.dialect.name).change_each(connection, [{"id": account, **zero} for account in ids])


def look(connection: Connection, account: Account) -> Standing:
    """How an account stands, without locking or opening it."""
    return standing_in(_ACCOUNT.first(connection, {"key": account.id}), account)


def standing_in(row: AnyRow | None, account: Account) -> Standing:
    """How an account stands whose row may not be there yet."""
    return Standing(scope=account.scope, cap=account.cap) if row is None else standing(row, account)


def standing(row: AnyRow, account: Account, child: AnyRow | None = None) -> Standing:
    """How an account stands; ``child`` is the account of the child that spends: what it holds is at its disposal."""
    return Standing(
        scope=account.scope,
        cap=account.cap,
        spent_nano_usd=row.spent_nano_usd,
        reserved_nano_usd=row.reserved_nano_usd,
        allotted_nano_usd=row.allotted_nano_usd - (0 if child is None else child.held_nano_usd),
        spent_tokens=row.spent_tokens,
        reserved_tokens=row.reserved_tokens,
        allotted_tokens=row.allotted_tokens - (0 if child is None else child.held_tokens),
    )


def account_id(scope: Scope, key: str) -> str:
    """The id of an account."""
    return f"{scope.value}:{key}"


def day_id(principal: str, at: datetime) -> str:
    """The id of the account of a principal's day."""
    return account_id(Scope.DAY, f"{at.astimezone(UTC).date().isoformat()}:{principal}")


def session_of(account: str) -> str | None:
    """The session whose own account it is; None for other accounts."""
    scope, _, key = account.partition(":")
    return key if scope == Scope.SESSION else None
