"""Budgets in the database: claims on them, and their settling with the ledger (see :mod:`server.budgets`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, Row, Update, and_, bindparam, delete, insert, or_, select, update

from server.budgets import WARNING_LEVELS, Cap, Claim, Reservation, Scope, Shortage, Standing, fit
from server.models import NANO_USD, EventKind, LedgerEntry, Usage
from server.store.database import insert as upsert
from server.store.events import append
from server.store.room import Room
from server.store.tables import budget_accounts, reservations, sessions

MAX_ANCESTORS: Final = 64
"""Deepest tree of sessions that is followed; spawning stops far earlier."""

UNLIMITED: Final = (1 << 63) - 1


class Budgets(Room):
    """Reserving, and looking at how accounts stand."""

    async def reserve(self, claim: Claim) -> Reservation | Shortage:
        """Reserve in all accounts of the claim, at once or not at all.

        Raises:
            RookeryError: ``storage_unavailable``; nothing is reserved then.
        """
        return await self._database.write(_reserve, claim, self._now())

    async def standing(self, session_id: str) -> Standing:
        """How a session's own account stands, what its spawned descendants spend included."""
        return await self._database.read(_session_standing, session_id)


_TABLE: Final = budget_accounts.c

_SESSION: Final = select(sessions.c.parent_id, sessions.c.forked_from, sessions.c.budget_nano_usd).where(
    sessions.c.id == bindparam("key")
)
_CAP: Final = select(sessions.c.budget_nano_usd).where(sessions.c.id == bindparam("key"))
_ACCOUNTS: Final = select(budget_accounts).where(_TABLE.id.in_(bindparam("ids", expanding=True))).order_by(_TABLE.id)
_LOCKED_ACCOUNTS: Final = _ACCOUNTS.with_for_update()
_RESERVE: Final = insert(reservations)
_RELEASE: Final = (
    delete(reservations)
    .where(reservations.c.id == bindparam("key"))
    .returning(
        reservations.c.accounts, reservations.c.nano_usd, reservations.c.input_tokens, reservations.c.output_tokens
    )
)
_SETTLE: Final = (
    update(budget_accounts)
    .where(_TABLE.id.in_(bindparam("ids", expanding=True)))
    .values(
        spent_nano_usd=_TABLE.spent_nano_usd + bindparam("nano_usd"),
        spent_tokens=_TABLE.spent_tokens + bindparam("tokens"),
        reserved_nano_usd=_TABLE.reserved_nano_usd - bindparam("held_nano_usd"),
        reserved_tokens=_TABLE.reserved_tokens - bindparam("held_tokens"),
    )
)
_SPENT: Final = (
    select(sessions.c.id, sessions.c.turn, sessions.c.budget_nano_usd, _TABLE.spent_nano_usd)
    .join(budget_accounts, _TABLE.id == f"{Scope.SESSION}:" + sessions.c.id)
    .where(sessions.c.id.in_(bindparam("ids", expanding=True)), sessions.c.budget_nano_usd > 0)
)
"""Statements are made once: making them takes longer than running them."""


@cache
def _take(accounts: int) -> Update:
    """One UPDATE that reserves in as many accounts, each only if it has room; their number tells whether all had."""
    nano_usd, tokens = bindparam("nano_usd", type_=BigInteger), bindparam("tokens", type_=BigInteger)
    spent, counted = _TABLE.spent_nano_usd + _TABLE.reserved_nano_usd, _TABLE.spent_tokens + _TABLE.reserved_tokens
    with_room = [
        and_(
            _TABLE.id == bindparam(f"id_{number}"),
            spent + nano_usd <= bindparam(f"nano_usd_cap_{number}", type_=BigInteger),
            counted + tokens <= bindparam(f"tokens_cap_{number}", type_=BigInteger),
        )
        for number in range(accounts)
    ]
    taken = {
        "reserved_nano_usd": _TABLE.reserved_nano_usd + nano_usd,
        "reserved_tokens": _TABLE.reserved_tokens + tokens,
    }
    return update(budget_accounts).where(or_(*with_room)).values(taken)


Capped = tuple[str, Scope, Cap]
"""An account's id with its cap."""


def _reserve(connection: Connection, claim: Claim, at: datetime) -> Reservation | Shortage:
    capped = _accounts(connection, claim)
    granted = fit(claim, _standings(connection, capped))
    if isinstance(granted, Shortage):
        return granted
    nano_usd, tokens = claim.nano_usd(granted), claim.input_tokens + granted
    values: dict[str, str | int] = {"nano_usd": nano_usd, "tokens": tokens}
    for number, (account, _, cap) in enumerate(capped):
        values[f"id_{number}"] = account
        values[f"nano_usd_cap_{number}"] = UNLIMITED if cap.nano_usd is None else cap.nano_usd
        values[f"tokens_cap_{number}"] = UNLIMITED if cap.tokens is None else cap.tokens
    if connection.execute(_take(len(capped)), values).rowcount != len(capped):
        # Not reached while the rows are locked; the condition in the UPDATE is what makes it safe without.
        raise RuntimeError("a budget changed while it was locked")
    row = {
        "id": claim.id,
        "owner": claim.owner,
        "principal": claim.principal,
        "session_id": claim.session_id,
        "root_id": claim.root_id,
        "turn": claim.turn,
        "model": claim.model,
        "input_tokens": claim.input_tokens,
        "output_tokens": granted,
        "nano_usd": nano_usd,
        "priced": claim.output_nano_usd is not None,
        "accounts": [account for account, _, _ in capped],
        "created_at": at,
    }
    connection.execute(_RESERVE, row)
    return Reservation(id=claim.id, output_tokens=granted, nano_usd=nano_usd, tokens=tokens)


def _accounts(connection: Connection, claim: Claim) -> list[Capped]:
    """The accounts of a claim with their caps, in one order for all, so that no two claims wait for each other."""
    found: list[Capped] = [
        (account_id(Scope.SESSION, session_id), Scope.SESSION, Cap(nano_usd=cap, tokens=claim.caps.session.tokens))
        for session_id, cap in _lineage(connection, claim.session_id)
    ]
    found.append((account_id(Scope.TREE, claim.root_id), Scope.TREE, claim.caps.tree))
    found.append((account_id(Scope.PRINCIPAL, claim.principal), Scope.PRINCIPAL, claim.caps.principal))
    found.append((_day_id(claim.principal, claim.at), Scope.DAY, claim.caps.day))
    return sorted(found)


def _lineage(connection: Connection, session_id: str) -> list[tuple[str, int | None]]:
    """A session and those that it was spawned under, each with its cap.

    A fork is not charged to the session it was forked from, which may have ended with its budget spent, but to those
    which that one was spawned under.
    """
    found: list[tuple[str, int | None]] = []
    current: str | None = session_id
    charged = True
    while current is not None and len(found) < MAX_ANCESTORS:
        row = connection.execute(_SESSION, {"key": current}).first()
        if charged:
            found.append((current, None if row is None else row.budget_nano_usd))
        if row is None:
            break
        charged = row.forked_from is None
        current = row.parent_id
    return found


def _standings(connection: Connection, capped: Sequence[Capped]) -> list[Standing]:
    """How accounts stand, their rows locked. Those that are not there yet are opened."""
    ids = [account for account, _, _ in capped]
    rows = {row.id: row for row in connection.execute(_LOCKED_ACCOUNTS, {"ids": ids})}
    if len(rows) < len(ids):
        _open(connection, ids)
        rows = {row.id: row for row in connection.execute(_LOCKED_ACCOUNTS, {"ids": ids})}
    return [_standing(rows[account], scope, cap) for account, scope, cap in capped]


def _open(connection: Connection, accounts: Sequence[str]) -> None:
    zero = dict.fromkeys(("spent_nano_usd", "reserved_nano_usd", "spent_tokens", "reserved_tokens"), 0)
    statement = upsert(connection, budget_accounts).on_conflict_do_nothing(index_elements=["id"])
    connection.execute(statement, [{"id": account, **zero} for account in accounts])


def _standing(row: Row[Any], scope: Scope, cap: Cap) -> Standing:
    return Standing(
        scope=scope,
        cap=cap,
        spent_nano_usd=row.spent_nano_usd,
        reserved_nano_usd=row.reserved_nano_usd,
        spent_tokens=row.spent_tokens,
        reserved_tokens=row.reserved_tokens,
    )


def _session_standing(connection: Connection, session_id: str) -> Standing:
    cap = Cap(nano_usd=connection.execute(_CAP, {"key": session_id}).scalar())
    row = connection.execute(_ACCOUNTS, {"ids": [account_id(Scope.SESSION, session_id)]}).first()
    return Standing(scope=Scope.SESSION, cap=cap) if row is None else _standing(row, Scope.SESSION, cap)


def settle(connection: Connection, entry: LedgerEntry) -> list[str]:
    """Put a ledger entry's true cost in the place of what was reserved, inside the transaction that writes it.

    A warning goes into the log of each session whose spending passes a level of its cap.

    Returns:
        Ids of the sessions whose log got a warning.
    """
    held = connection.execute(_RELEASE, {"key": entry.id}).first()
    accounts = _accounts_of(connection, entry) if held is None else held.accounts
    if held is None:
        _open(connection, accounts)
    spent = entry.nano_usd or 0
    values = {
        "ids": accounts,
        "nano_usd": spent,
        "tokens": tokens_of(entry),
        "held_nano_usd": 0 if held is None else held.nano_usd,
        "held_tokens": 0 if held is None else held.input_tokens + held.output_tokens,
    }
    connection.execute(_SETTLE, values)
    return _warn(connection, accounts, spent, entry.ended_at) if spent else []


def _warn(connection: Connection, accounts: Sequence[str], spent: int, at: datetime) -> list[str]:
    named = [key for account in accounts if (key := _session_of(account)) is not None]
    warned: list[str] = []
    for row in connection.execute(_SPENT, {"ids": named}).all():
        before = (row.spent_nano_usd - spent) * 100 // row.budget_nano_usd
        after = row.spent_nano_usd * 100 // row.budget_nano_usd
        passed = [level for level in WARNING_LEVELS if before < level <= after]
        if passed:
            data = {
                "percent": passed[-1],
                "spent_usd": row.spent_nano_usd / NANO_USD,
                "budget_usd": row.budget_nano_usd / NANO_USD,
            }
            append(connection, row.id, row.turn, [(EventKind.BUDGET, data)], at)
            warned.append(row.id)
    return warned


def _accounts_of(connection: Connection, entry: LedgerEntry) -> list[str]:
    """The accounts of an entry that nothing was reserved for."""
    lineage = [account_id(Scope.SESSION, session_id) for session_id, _ in _lineage(connection, entry.session_id)]
    tree, principal = account_id(Scope.TREE, entry.root_id), account_id(Scope.PRINCIPAL, entry.principal)
    return [*lineage, tree, principal, _day_id(entry.principal, entry.started_at)]


def lost_entry(connection: Connection, reservation_id: str, at: datetime) -> LedgerEntry | None:
    """The entry for a request whose server died with it: all that was reserved counts as used, for nobody knows."""
    row = connection.execute(select(reservations).where(reservations.c.id == reservation_id)).first()
    if row is None:
        return None
    return LedgerEntry(
        id=row.id,
        principal=row.principal,
        session_id=row.session_id,
        root_id=row.root_id,
        turn=row.turn,
        model=row.model,
        status=0,
        complete=False,
        error="server_lost",
        usage=Usage(input_tokens=row.input_tokens, output_tokens=row.output_tokens),
        estimated=True,
        nano_usd=row.nano_usd if row.priced else None,
        price_source="reservation" if row.priced else None,
        started_at=row.created_at,
        ended_at=at,
    )


def tokens_of(entry: LedgerEntry) -> int:
    """Tokens of all kinds of one request."""
    usage = entry.usage
    return usage.input_tokens + usage.output_tokens + usage.cache_read_tokens + usage.cache_write_tokens


def account_id(scope: Scope, key: str) -> str:
    """The id of an account."""
    return f"{scope.value}:{key}"


def _day_id(principal: str, at: datetime) -> str:
    return account_id(Scope.DAY, f"{at.astimezone(UTC).date().isoformat()}:{principal}")


def _session_of(account: str) -> str | None:
    scope, _, key = account.partition(":")
    return key if scope == Scope.SESSION else None
