"""Budgets in the database: claims on them, and their settling with the ledger (see :mod:`server.budgets`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, and_, bindparam, case, delete, insert, or_, select, update

from server.budgets import Caps, Claim, Reservation, Scope, Shortage, Standing, fit
from server.models import LedgerEntry, Usage
from server.store.accounts import Account, account_id, accounts_of, look, opened, rows_of, standing
from server.store.allotments import Drawn, give_back
from server.store.budget_warnings import warn_of_caps, warn_of_spending
from server.store.prepared import AnyRow, Prepared
from server.store.room import Room
from server.store.tables import budget_accounts, reservations, sessions

UNLIMITED: Final = (1 << 63) - 1


class Budgets(Room):
    """Reserving, and looking at how accounts stand."""

    async def reserve(self, claim: Claim) -> Reservation | Shortage:
        """Reserve in all accounts of the claim, at once or not at all.

        Raises:
            RookeryError: ``storage_unavailable``; nothing is reserved then.
        """
        answer, warned = await self._database.write(_reserve, claim, self._now())
        if warned:
            self._changed(claim.session_id)
        return answer

    async def standing(self, session_id: str) -> Standing:
        """How a session's own account stands, what its spawned descendants spend included."""
        return await self._database.read(session_standing, session_id)


_TABLE: Final = budget_accounts.c

_CAPS: Final = Prepared(
    select(sessions.c.budget_nano_usd.label("nano_usd"), sessions.c.budget_tokens.label("tokens")).where(
        sessions.c.id == bindparam("key")
    )
)
_RESERVE: Final = Prepared(insert(reservations))
_RELEASE: Final = Prepared(
    delete(reservations)
    .where(reservations.c.id == bindparam("key"))
    .returning(
        reservations.c.accounts,
        reservations.c.nano_usd,
        reservations.c.input_tokens,
        reservations.c.output_tokens,
        reservations.c.drawn,
    )
)
_SETTLE: Final = Prepared(
    update(budget_accounts)
    .where(_TABLE.id == bindparam("key"))
    .values(
        spent_nano_usd=_TABLE.spent_nano_usd + bindparam("nano_usd"),
        spent_tokens=_TABLE.spent_tokens + bindparam("tokens"),
        reserved_nano_usd=_TABLE.reserved_nano_usd - bindparam("freed_nano_usd"),
        reserved_tokens=_TABLE.reserved_tokens - bindparam("freed_tokens"),
    )
)


@cache
def _take(accounts: int, children: bool) -> Prepared:
    """One UPDATE that reserves in as many accounts, each only if it has room; their number tells whether all had.

    Args:
        accounts: how many.
        children: whether some of them spend from allotments of others.
    """
    nano_usd, tokens = _number("nano_usd"), _number("tokens")
    spent, counted = _TABLE.spent_nano_usd + _TABLE.reserved_nano_usd, _TABLE.spent_tokens + _TABLE.reserved_tokens
    with_room = [
        and_(
            _TABLE.id == bindparam(f"id_{number}"),
            spent + _TABLE.allotted_nano_usd + nano_usd <= _number(f"nano_usd_cap_{number}"),
            counted + _TABLE.allotted_tokens + tokens <= _number(f"tokens_cap_{number}"),
        )
        for number in range(accounts)
    ]
    taken: dict[str, Any] = {
        "reserved_nano_usd": _TABLE.reserved_nano_usd + nano_usd,
        "reserved_tokens": _TABLE.reserved_tokens + tokens,
    }
    if children:
        for name in ("held_nano_usd", "held_tokens", "allotted_nano_usd", "allotted_tokens"):
            parts = [(_TABLE.id == bindparam(f"id_{at}"), _number(f"{name}_{at}")) for at in range(accounts)]
            taken[name] = _TABLE[name] - case(*parts, else_=0)
    return Prepared(update(budget_accounts).where(or_(*with_room)).values(taken))


def _number(name: str) -> Any:
    return bindparam(name, type_=BigInteger)


def _reserve(connection: Connection, claim: Claim, at: datetime) -> tuple[Reservation | Shortage, bool]:
    accounts = accounts_of(
        connection,
        session_id=claim.session_id,
        root_id=claim.root_id,
        principal=claim.principal,
        at=claim.at,
        caps=claim.caps,
    )
    rows = rows_of(connection, [account.id for account in accounts])
    standings = [standing(rows[one.id], one, rows[one.feeds] if one.feeds else None) for one in accounts]
    warned = warn_of_caps(connection, claim, zip(accounts, standings, strict=True), rows, at)
    granted = fit(claim, standings)
    if isinstance(granted, Shortage):
        return granted, warned
    nano_usd, tokens = claim.nano_usd(granted), claim.input_tokens + granted
    drawn = _drawn(accounts, rows, nano_usd, tokens)
    values = _values(accounts, rows, drawn) | {"nano_usd": nano_usd, "tokens": tokens}
    if _take(len(accounts), bool(drawn)).change(connection, values) != len(accounts):
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
        "accounts": [account.id for account in accounts],
        "created_at": at,
        "drawn": drawn or None,
    }
    _RESERVE.change(connection, row)
    return Reservation(id=claim.id, output_tokens=granted, nano_usd=nano_usd, tokens=tokens), warned


def _drawn(accounts: Sequence[Account], rows: Mapping[str, AnyRow], nano_usd: int, tokens: int) -> Drawn:
    """What of a request comes from allotments."""
    drawn: Drawn = []
    for account in accounts:
        if account.feeds is not None:
            held = rows[account.feeds]
            part = (min(nano_usd, held.held_nano_usd), min(tokens, held.held_tokens))
            drawn.append((account.feeds, account.id, *part))
    return drawn


def _values(accounts: Sequence[Account], rows: Mapping[str, AnyRow], drawn: Drawn) -> dict[str, str | int]:
    values: dict[str, str | int] = {}
    given = {child: (nano_usd, tokens) for child, _, nano_usd, tokens in drawn}
    taken = {parent: (nano_usd, tokens) for _, parent, nano_usd, tokens in drawn}
    for at, account in enumerate(accounts):
        child, cap = rows[account.feeds] if account.feeds is not None else None, account.cap
        values[f"id_{at}"] = account.id
        dollars, counted = (0, 0) if child is None else (child.held_nano_usd, child.held_tokens)
        values[f"nano_usd_cap_{at}"] = UNLIMITED if cap.nano_usd is None else cap.nano_usd + dollars
        values[f"tokens_cap_{at}"] = UNLIMITED if cap.tokens is None else cap.tokens + counted
        if drawn:
            values[f"held_nano_usd_{at}"], values[f"held_tokens_{at}"] = given.get(account.id, (0, 0))
            values[f"allotted_nano_usd_{at}"], values[f"allotted_tokens_{at}"] = taken.get(account.id, (0, 0))
    return values


def session_standing(connection: Connection, session_id: str) -> Standing:
    """How a session's own account stands."""
    return look(connection, session_account(connection, session_id, Caps()))


def session_account(connection: Connection, session_id: str, caps: Caps) -> Account:
    """A session's own account with its caps; those of an unknown session have none."""
    row = _CAPS.first(connection, {"key": session_id})
    found = caps.session
    if row is not None:
        found = found.model_copy(update={"nano_usd": row.nano_usd})
        if row.tokens is not None:
            found = found.model_copy(update={"tokens": row.tokens})
    return Account(account_id(Scope.SESSION, session_id), Scope.SESSION, found)


def settle(connection: Connection, entry: LedgerEntry) -> list[str]:
    """Put a ledger entry's true cost in the place of what was reserved, inside the transaction that writes it.

    A warning goes into the log of each session whose spending passes a level of its cap.

    Returns:
        Ids of the sessions whose log got a warning.
    """
    spent, tokens = entry.nano_usd or 0, tokens_of(entry)
    held = _RELEASE.first(connection, {"key": entry.id})
    if held is None:
        return charge(connection, entry.session_id, entry.root_id, entry.principal, entry.started_at, spent, tokens)
    values = {
        "nano_usd": spent,
        "tokens": tokens,
        "freed_nano_usd": held.nano_usd,
        "freed_tokens": held.input_tokens + held.output_tokens,
    }
    _SETTLE.change_each(connection, [values | {"key": key} for key in held.accounts])
    if held.drawn:
        give_back(connection, held.drawn, spent, tokens)
    return warn_of_spending(connection, held.accounts, spent, tokens, entry.ended_at)


def charge(
    connection: Connection, session_id: str, root_id: str, principal: str, at: datetime, nano_usd: int, tokens: int
) -> list[str]:
    """Charge what nothing was reserved for; ids of the sessions whose log got a warning."""
    accounts = accounts_of(connection, session_id=session_id, root_id=root_id, principal=principal, at=at, caps=Caps())
    ids = [account.id for account in accounts]
    opened(connection, ids)
    values = {"nano_usd": nano_usd, "tokens": tokens, "freed_nano_usd": 0, "freed_tokens": 0}
    _SETTLE.change_each(connection, [values | {"key": key} for key in ids])
    give_back(connection, [(one.feeds, one.id, 0, 0) for one in accounts if one.feeds], nano_usd, tokens)
    return warn_of_spending(connection, ids, nano_usd, tokens, at)


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
