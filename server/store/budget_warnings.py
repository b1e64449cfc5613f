"""Warnings that a cap comes near, written into the log of the session that spends.

A session's own caps are looked at when money is spent. Those of the operator (tree, principal, day) are known when a
request is admitted, and are looked at then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select, update

from server.budgets import Cap, Claim, Scope, Standing, warning_level
from server.errors import RookeryError
from server.models import NANO_USD, EventKind
from server.store.accounts import Account, session_of
from server.store.events import append
from server.store.prepared import AnyRow, Prepared
from server.store.tables import budget_accounts, sessions

_TABLE: Final = budget_accounts.c
_SPENT: Final = Prepared(
    select(
        sessions.c.id,
        sessions.c.turn,
        sessions.c.budget_nano_usd,
        sessions.c.budget_tokens,
        _TABLE.spent_nano_usd,
        _TABLE.spent_tokens,
    )
    .join(budget_accounts, _TABLE.id == f"{Scope.SESSION}:" + sessions.c.id)
    .where(sessions.c.id == bindparam("key"))
)
_WARNED: Final = Prepared(
    update(budget_accounts).where(_TABLE.id == bindparam("key")).values(warned=bindparam("level"))
)


def warn_of_spending(
    connection: Connection, accounts: Sequence[str], nano_usd: int, tokens: int, at: datetime
) -> list[str]:
    """Warn in each session whose own spending just passed a level of a cap; their ids."""
    if not (nano_usd or tokens):
        return []
    named = [key for account in accounts if (key := session_of(account)) is not None]
    warned: list[str] = []
    for row in [found for key in named for found in _SPENT.rows(connection, {"key": key})]:
        now = Standing(
            scope=Scope.SESSION,
            cap=Cap(nano_usd=row.budget_nano_usd, tokens=row.budget_tokens),
            spent_nano_usd=row.spent_nano_usd,
            spent_tokens=row.spent_tokens,
        )
        earlier = {"spent_nano_usd": row.spent_nano_usd - nano_usd, "spent_tokens": row.spent_tokens - tokens}
        before = now.model_copy(update=earlier)
        level = warning_level(now.percent)
        if level > warning_level(before.percent):
            append(connection, row.id, row.turn, [(EventKind.BUDGET, _data(now, level))], at)
            warned.append(row.id)
    return warned


def warn_of_caps(
    connection: Connection,
    claim: Claim,
    accounts: Iterable[tuple[Account, Standing]],
    rows: Mapping[str, AnyRow],
    at: datetime,
) -> bool:
    """Warn in the session that asks of each cap of the operator whose next level was reached; whether there is one."""
    warned = False
    for account, standing in accounts:
        if account.scope is Scope.SESSION:
            continue
        level, known = warning_level(standing.percent), int(rows[account.id].warned)
        if level == known:
            continue
        # A cap that was raised is warned of anew.
        _WARNED.change(connection, {"key": account.id, "level": level})
        if level > known:
            # A session that was deleted meanwhile has no log any more.
            with suppress(RookeryError):
                append(connection, claim.session_id, claim.turn, [(EventKind.BUDGET, _data(standing, level))], at)
            warned = True
    return warned


def _data(standing: Standing, level: int) -> dict[str, Any]:
    """What the event BUDGET says: ``scope``, ``percent`` (the level), and of each cap that there is, with its unit,
    what is spent."""
    data: dict[str, Any] = {"scope": standing.scope.value, "percent": level}
    if standing.cap.nano_usd is not None:
        data |= {"spent_usd": standing.spent_nano_usd / NANO_USD, "budget_usd": standing.cap.nano_usd / NANO_USD}
    if standing.cap.tokens is not None:
        data |= {"spent_tokens": standing.spent_tokens, "budget_tokens": standing.cap.tokens}
    return data
