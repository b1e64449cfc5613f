"""Budgets in the database: claims on them, and their settling with the ledger (see :mod:`server.budgets`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, Update, delete, insert, select, update
from sqlalchemy import case as sql_case

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


def _reserve(connection: Connection, claim: Claim, at: datetime) -> Reservation | Shortage:
    capped = _accounts(connection, claim)
    _open(connection, [account for account, _, _ in capped])
    standings = _standings(connection, capped, lock=True)
    granted = fit(claim, standings)
    if isinstance(granted, Shortage):
        return granted
    nano_usd, tokens = claim.nano_usd(granted), claim.input_tokens + granted
    taken = connection.execute(_take(capped, nano_usd, tokens))
    if taken.rowcount != len(capped):
        # Not reached while the rows are locked; the condition in the UPDATE is what makes it safe without.
        raise RuntimeError("a budget changed while it was locked")
    connection.execute(
        insert(reservations).values(
            id=claim.id,
            owner=claim.owner,
            principal=claim.principal,
            session_id=claim.session_id,
            root_id=claim.root_id,
            turn=claim.turn,
            model=claim.model,
            input_tokens=claim.input_tokens,
            output_tokens=granted,
            nano_usd=nano_usd,
            priced=claim.output_nano_usd is not None,
            accounts=[account for account, _, _ in capped],
            created_at=at,
        )
    )
    return Reservation(id=claim.id, output_tokens=granted, nano_usd=nano_usd, tokens=tokens)


Capped = tuple[str, Scope, Cap]
"""An account's id with its cap."""


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
    for _ in range(MAX_ANCESTORS):
        if current is None:
            break
        query = select(sessions.c.parent_id, sessions.c.forked_from, sessions.c.budget_nano_usd)
        row = connection.execute(query.where(sessions.c.id == current)).first()
        if row is None:
            if charged:
                found.append((current, None))
            break
        if charged:
            found.append((current, row.budget_nano_usd))
        charged = row.forked_from is None
        current = row.parent_id
    return found


def _take(capped: Sequence[Capped], nano_usd: int, tokens: int) -> Update:
    """One UPDATE that reserves in every account which has room, and in no other."""
    table = budget_accounts.c
    dollars = {account: cap.nano_usd for account, _, cap in capped if cap.nano_usd is not None}
    counts = {account: cap.tokens for account, _, cap in capped if cap.tokens is not None}
    conditions: list[ColumnElement[bool]] = [table.id.in_([account for account, _, _ in capped])]
    if dollars:
        room = sql_case(dollars, value=table.id, else_=UNLIMITED) - table.spent_nano_usd - table.reserved_nano_usd
        conditions.append(room >= nano_usd)
    if counts:
        room = sql_case(counts, value=table.id, else_=UNLIMITED) - table.spent_tokens - table.reserved_tokens
        conditions.append(room >= tokens)
    return (
        update(budget_accounts)
        .where(*conditions)
        .values(
            reserved_nano_usd=table.reserved_nano_usd + nano_usd,
            reserved_tokens=table.reserved_tokens + tokens,
        )
    )


def _open(connection: Connection, accounts: Sequence[str]) -> None:
    zero = dict.fromkeys(("spent_nano_usd", "reserved_nano_usd", "spent_tokens", "reserved_tokens"), 0)
    statement = upsert(connection, budget_accounts).on_conflict_do_nothing(index_elements=["id"])
    connection.execute(statement, [{"id": account, **zero} for account in accounts])


def _standings(connection: Connection, capped: Sequence[Capped], *, lock: bool) -> list[Standing]:
    query = select(budget_accounts).where(budget_accounts.c.id.in_([account for account, _, _ in capped]))
    query = query.order_by(budget_accounts.c.id)
    rows = {row.id: row for row in connection.execute(query.with_for_update() if lock else query)}
    standings: list[Standing] = []
    for account, scope, cap in capped:
        row = rows.get(account)
        figures = {} if row is None else {name: value for name, value in row._mapping.items() if name != "id"}
        standings.append(Standing(scope=scope, cap=cap, **figures))
    return standings


def _session_standing(connection: Connection, session_id: str) -> Standing:
    cap = connection.execute(select(sessions.c.budget_nano_usd).where(sessions.c.id == session_id)).scalar()
    capped = [(account_id(Scope.SESSION, session_id), Scope.SESSION, Cap(nano_usd=cap))]
    return _standings(connection, capped, lock=False)[0]


def settle(connection: Connection, entry: LedgerEntry) -> list[str]:
    """Put a ledger entry's true cost in the place of what was reserved, inside the transaction that writes it.

    A warning goes into the log of each session whose spending passes a level of its cap.

    Returns:
        Ids of the sessions whose log got a warning.
    """
    held = connection.execute(
        delete(reservations)
        .where(reservations.c.id == entry.id)
        .returning(
            reservations.c.accounts, reservations.c.nano_usd, reservations.c.input_tokens, reservations.c.output_tokens
        )
    ).first()
    accounts = held.accounts if held is not None else _accounts_of(connection, entry)
    if held is None:
        _open(connection, accounts)
    spent = entry.nano_usd or 0
    table = budget_accounts.c
    connection.execute(
        update(budget_accounts)
        .where(table.id.in_(accounts))
        .values(
            spent_nano_usd=table.spent_nano_usd + spent,
            spent_tokens=table.spent_tokens + tokens_of(entry),
            reserved_nano_usd=table.reserved_nano_usd - (0 if held is None else held.nano_usd),
            reserved_tokens=table.reserved_tokens - (0 if held is None else held.input_tokens + held.output_tokens),
        )
    )
    return _warn(connection, accounts, spent, entry.ended_at) if spent else []


def _warn(connection: Connection, accounts: Sequence[str], spent: int, at: datetime) -> list[str]:
    named = [key for account in accounts if (key := _session_of(account)) is not None]
    query = (
        select(sessions.c.id, sessions.c.turn, sessions.c.budget_nano_usd, budget_accounts.c.spent_nano_usd)
        .join(budget_accounts, budget_accounts.c.id == f"{Scope.SESSION}:" + sessions.c.id)
        .where(sessions.c.id.in_(named), sessions.c.budget_nano_usd > 0)
    )
    warned: list[str] = []
    for row in connection.execute(query):
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
