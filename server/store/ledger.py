"""The ledger of model requests, and the running sums that answers are read from.

Entry and sums change in one transaction, so the sums are always those of the ledger. Neither is ever deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, case, func, literal, or_, select

from server.models import NANO_USD, Cost, LedgerEntry, RunningSandbox, SandboxTime
from server.store.budgets import charge, lost_entry, settle
from server.store.database import insert_for
from server.store.prepared import AnyRow, Prepared
from server.store.room import Room
from server.store.running_sandboxes import enter, lost_lines, move_on
from server.store.tables import SUMS, cost_totals, ledger, principal_totals, reservations, sandbox_time, servers

SANDBOX: Final = "sandbox"
"""With the provider's name, what sandboxes are called among the models in the running sums."""

_TOKENS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "server_tool_requests",
)


class Ledger(Room):
    """Writing model requests, and their sums by session, turn and tree."""

    async def record_request(self, entry: LedgerEntry) -> None:
        """Write one model request. An id that was written before changes nothing, so a retry is harmless.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        for session_id in await self._database.write(_record, entry):
            self._changed(session_id)

    async def enter_sandbox(self, sandbox: RunningSandbox) -> None:
        """Enter a sandbox that runs from now on: if its server dies, others write the line that is missing then.

        What an earlier server of the session left unwritten is charged up to now. One that was entered stays as it is.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        for session_id in await self._database.write(_enter_sandbox, sandbox):
            self._changed(session_id)

    async def record_sandbox_time(self, line: SandboxTime, then: RunningSandbox | None = None) -> bool:
        """Write a stretch of time that a sandbox ran. An id that was written before changes nothing.

        Args:
            then: how the sandbox runs on; None: it ran until now.

        Returns:
            False where it was not entered with this line any more, as when others took its server for dead.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        changed, entered = await self._database.write(_record_stretch, line, then)
        for session_id in changed:
            self._changed(session_id)
        return entered

    async def charge_lost(self, dead: Iterable[str]) -> int:
        """Charge what dead servers had reserved for requests under way, and the time of their sandboxes that they did
        not come to write; how many lines that made.

        A server that was never entered, or was struck off, counts as dead too. Nobody knows how far the requests came,
        so each is charged in full and marked as estimated (row B04). Sandboxes are charged up to the last heartbeat,
        and those that outlive their server until they stopped (:mod:`server.store.running_sandboxes`).

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        charged = await self._database.write(_charge_lost, sorted(dead), self._now())
        for session_id in charged:
            self._changed(session_id)
        return len(charged)

    async def cost(self, session_id: str) -> Cost:
        """What a session has cost, its turns together; zero for one without requests."""
        return await self._sum(totals(cost_totals, cost_totals.c.session_id == session_id))

    async def tree_cost(self, root_id: str) -> Cost:
        """What a root session and all that descends from it have cost."""
        return await self._sum(totals(cost_totals, cost_totals.c.root_id == root_id))

    async def turn_cost(self, session_id: str, turn: int) -> Cost:
        """What the model requests of one turn have cost."""
        failed = case((_failed(), 1), else_=0)
        query = select(
            *(func.coalesce(func.sum(ledger.c[name]), 0).label(name) for name in SUMS if name in ledger.c),
            func.count().label("requests"),
            func.coalesce(func.sum(failed), 0).label("failures"),
            (func.count() - func.count(ledger.c.nano_usd)).label("unpriced_requests"),
            *(literal(0).label(name) for name in SUMS if name.startswith("sandbox_")),
        ).where(ledger.c.session_id == session_id, ledger.c.turn == turn)
        return await self._sum(query)

    async def _sum(self, query: Select[Any]) -> Cost:
        return await self._database.read(lambda connection: cost_of(connection.execute(query).one()))


def totals(table: Table, *where: ColumnElement[bool], by: Iterable[ColumnElement[Any]] = ()) -> Select[Any]:
    """The sums over the rows of a table of running totals that fit, one row for each group in ``by``."""
    groups = tuple(by)
    sums = (func.coalesce(func.sum(table.c[name]), 0).label(name) for name in SUMS)
    return select(*groups, *sums).where(*where).group_by(*groups)


def cost_of(row: AnyRow | Row[Any]) -> Cost:
    """The cost in a row that holds :data:`SUMS`. Postgres sums big integers to decimals."""
    sums = {name: int(getattr(row, name)) for name in SUMS}
    return Cost(
        usd=sums.pop("nano_usd") / NANO_USD,
        sandbox_seconds=sums.pop("sandbox_ms") / 1000,
        sandbox_usd=sums.pop("sandbox_nano_usd") / NANO_USD,
        **sums,
    )


def _failed() -> ColumnElement[bool]:
    return or_(ledger.c.status == 0, ledger.c.status >= 400, ledger.c.error.is_not(None))


def _charge_lost(connection: Connection, dead: list[str], at: datetime) -> list[str]:
    charged: list[str] = []
    gone = or_(reservations.c.owner.in_(dead), reservations.c.owner.not_in(select(servers.c.id)))
    query = select(reservations.c.id).where(gone)
    for reservation_id in connection.execute(query).scalars().all():
        entry = lost_entry(connection, reservation_id, at)
        if entry is not None and _record(connection, entry):
            charged.append(entry.session_id)
    lines = lost_lines(connection, dead, at)
    return charged + [line.session_id for line in lines if _record_sandbox(connection, line)]


def _record(connection: Connection, entry: LedgerEntry) -> list[str]:
    """Write an entry, its sums, and settle its reservation; the sessions that changed, none if it was there."""
    values = {name: value for name, value in dict(entry).items() if name != "usage"}
    values |= {name: getattr(entry.usage, name) for name in _TOKENS}
    if _new_entry(connection.dialect.name, ledger).first(connection, values) is None:
        return []
    added = dict.fromkeys(SUMS, 0) | {
        "nano_usd": entry.nano_usd or 0,
        "input_tokens": entry.usage.input_tokens,
        "output_tokens": entry.usage.output_tokens,
        "cache_read_tokens": entry.usage.cache_read_tokens,
        "cache_write_tokens": entry.usage.cache_write_tokens,
        "requests": 1,
        "failures": int(entry.status == 0 or entry.status >= 400 or entry.error is not None),
        "unpriced_requests": int(entry.nano_usd is None),
    }
    _add_up(connection, entry, entry.model, added)
    return [entry.session_id, *settle(connection, entry)]


def _add_up(connection: Connection, line: LedgerEntry | SandboxTime, model: str, added: dict[str, int]) -> None:
    """Add a line's figures to the running sums of its model and day."""
    group = {"model": model, "day": line.started_at.astimezone(UTC).date().isoformat()}
    owner = {"principal": line.principal}
    dialect = connection.dialect.name
    session = {"session_id": line.session_id, "root_id": line.root_id}
    _sums(dialect, cost_totals).change(connection, group | owner | session | added)
    _sums(dialect, principal_totals).change(connection, group | owner | added)


def _record_sandbox(connection: Connection, line: SandboxTime) -> list[str]:
    """Write a sandbox's line, its sums, and charge it; the sessions that changed, none if it was there."""
    if _new_entry(connection.dialect.name, sandbox_time).first(connection, dict(line)) is None:
        return []
    cost = {"nano_usd": line.nano_usd, "sandbox_nano_usd": line.nano_usd, "sandbox_ms": line.milliseconds}
    _add_up(connection, line, f"{SANDBOX} {line.kind}", dict.fromkeys(SUMS, 0) | cost)
    place = (line.session_id, line.root_id, line.principal, line.started_at)
    warned = charge(connection, *place, line.nano_usd, 0) if line.nano_usd else []
    return [line.session_id, *warned]


def _enter_sandbox(connection: Connection, sandbox: RunningSandbox) -> list[str]:
    """Enter a sandbox, and charge what was left of it; the sessions that changed."""
    line = enter(connection, sandbox)
    return [] if line is None else _record_sandbox(connection, line)


def _record_stretch(connection: Connection, line: SandboxTime, then: RunningSandbox | None) -> tuple[list[str], bool]:
    """Write a line, and go on to the next; the sessions that changed, and whether the sandbox was entered."""
    # The row first, which is what others wait for that want to write the same line.
    entered = move_on(connection, line, then)
    return _record_sandbox(connection, line), entered


@cache
def _new_entry(dialect: str, table: Table) -> Prepared:
    """Writes an entry unless it is there."""
    return Prepared(insert_for(dialect, table).on_conflict_do_nothing(index_elements=["id"]).returning(table.c.id))


@cache
def _sums(dialect: str, table: Table) -> Prepared:
    """Adds to a row of running sums, or begins it."""
    statement = insert_for(dialect, table)
    sums = {name: table.c[name] + statement.excluded[name] for name in SUMS}
    return Prepared(statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=sums))
