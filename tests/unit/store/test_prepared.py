"""Prepared statements answer as SQLAlchemy does, on each database."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import pytest
from sqlalchemy import Boolean, Column, Connection, Integer, MetaData, String, Table, bindparam, insert, select, update

from server.errors import ErrorCode, RookeryError
from server.store.columns import Json, UtcTime, Words
from server.store.database import BUSY_TIMEOUT_S, Database, open_database
from server.store.prepared import Prepared

birds = Table(
    "birds",
    MetaData(),
    Column("id", String, primary_key=True),
    Column("eggs", Integer),
    Column("seen", UtcTime),
    Column("rare", Boolean, nullable=False),
    Column("marks", Json),
    Column("song", Words),
)

ADD = Prepared(insert(birds))
FIND = select(birds).where(birds.c.id == bindparam("key"))
LAY = Prepared(update(birds).where(birds.c.id == bindparam("key")).values(eggs=birds.c.eggs + bindparam("more")))

ROOK = {
    "id": "rook",
    "eggs": 4,
    "seen": datetime(2026, 3, 1, 12, 30, 15, 250_000, timezone(timedelta(hours=2))),
    "rare": False,
    "marks": {"bill": ["grey", None], "age": 2},
    "song": "kaah\ud800",
}


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with open_database(url) as opened:
        await opened.write(lambda connection: birds.metadata.create_all(connection))
        yield opened


async def test_values_come_back_as_sqlalchemy_brings_them(database: Database) -> None:
    def both(connection: Connection) -> tuple[Any, Any]:
        ADD.change(connection, ROOK)
        key = {"key": "rook"}
        return Prepared(FIND).first(connection, key), connection.execute(FIND, key).one()

    prepared, plain = await database.write(both)

    assert prepared._asdict() == plain._asdict()
    assert prepared.seen == datetime(2026, 3, 1, 10, 30, 15, 250_000, UTC)
    assert prepared.rare is False
    assert prepared.marks == ROOK["marks"]
    assert prepared.song == "kaah\ufffd"


async def test_many_rows_are_added_and_read_in_order(database: Database) -> None:
    everything = Prepared(select(birds.c.id).order_by(birds.c.id))

    def body(connection: Connection) -> list[str]:
        ADD.change_each(connection, [{**ROOK, "id": name} for name in ("rook", "crow", "jackdaw")])
        return [row.id for row in everything.rows(connection)]

    assert await database.write(body) == ["crow", "jackdaw", "rook"]


async def test_a_change_tells_how_many_rows_it_found(database: Database) -> None:
    def body(connection: Connection) -> tuple[int, int, Any]:
        ADD.change(connection, ROOK)
        found = LAY.change(connection, {"key": "rook", "more": 3})
        missed = LAY.change(connection, {"key": "crow", "more": 3})
        return found, missed, Prepared(FIND).first(connection, {"key": "rook"})

    found, missed, rook = await database.write(body)
    assert (found, missed, rook.eggs) == (1, 0, 7)


async def test_what_a_change_returns_is_read_to_its_end_before_the_commit(database: Database) -> None:
    returning = Prepared(update(birds).values(eggs=bindparam("eggs_now")).returning(birds.c.id))

    def body(connection: Connection) -> Any:
        ADD.change_each(connection, [{**ROOK, "id": name} for name in ("rook", "crow")])
        return returning.first(connection, {"eggs_now": 9})

    assert (await database.write(body)).id in ("rook", "crow")
    query = Prepared(select(birds.c.eggs))
    assert [row.eggs for row in await database.read(query.rows)] == [9, 9]


@pytest.mark.parametrize(
    ("field", "value"),
    [("seen", datetime(2026, 3, 1)), ("marks", object()), ("eggs", 1 << 70)],
    ids=["a time without a zone", "no JSON", "a number too large"],
)
async def test_a_value_that_cannot_be_stored_is_the_callers_error_and_changes_nothing(
    database: Database, field: str, value: object
) -> None:
    def body(connection: Connection) -> None:
        ADD.change(connection, ROOK)
        ADD.change(connection, {**ROOK, "id": "crow", field: value})

    with pytest.raises(RookeryError) as caught:
        await database.write(body)

    # asyncpg says of a number that is too large only that it is bad data.
    assert caught.value.code in (ErrorCode.INVALID_ARGUMENT, ErrorCode.STORAGE_UNAVAILABLE)
    assert await database.read(Prepared(select(birds)).rows) == []


async def test_a_broken_rule_of_the_schema_is_our_own_fault(database: Database) -> None:
    def twice(connection: Connection) -> None:
        ADD.change_each(connection, [ROOK, ROOK])

    with pytest.raises(RookeryError) as caught:
        await database.write(twice)

    assert caught.value.code is ErrorCode.INTERNAL
    assert await database.read(Prepared(select(birds)).rows) == []


async def test_after_a_failed_transaction_the_next_one_finds_a_clean_connection(database: Database) -> None:
    def fails(connection: Connection) -> None:
        ADD.change(connection, ROOK)
        raise RuntimeError("in the midst")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="in the midst"):
            await database.write(fails)
    await database.write(ADD.change, ROOK)

    assert [row.id for row in await database.read(Prepared(select(birds)).rows)] == ["rook"]


async def test_a_glance_sees_what_was_committed_and_changes_nothing(database: Database) -> None:
    await database.write(ADD.change, ROOK)
    found = await database.glance(Prepared(FIND).first, {"key": "rook"})
    assert found is not None and found.eggs == 4

    await database.write(LAY.change, {"key": "rook", "more": 1})
    found = await database.glance(Prepared(FIND).first, {"key": "rook"})
    assert found is not None and found.eggs == 5


async def test_a_glance_at_a_locked_file_waits_in_a_thread_not_on_the_event_loop(sqlite_url: str) -> None:
    path = sqlite_url.removeprefix("sqlite:///")
    async with open_database(sqlite_url) as database:
        await database.write(lambda connection: birds.metadata.create_all(connection))
    looked = anyio.Event()

    async with open_database(sqlite_url) as database, anyio.create_task_group() as tasks:
        # The way a program that recovers the log keeps all others out.
        keeper = sqlite3.connect(path, isolation_level=None)
        keeper.execute("PRAGMA locking_mode=EXCLUSIVE")
        keeper.execute("BEGIN IMMEDIATE")
        keeper.execute("DELETE FROM birds")

        async def look() -> None:
            assert await database.glance(Prepared(select(birds)).rows) == []
            looked.set()

        tasks.start_soon(look)
        # Were the loop to wait for the lock, it could not be given back here.
        with anyio.fail_after(BUSY_TIMEOUT_S):
            await anyio.wait_all_tasks_blocked()
            assert not looked.is_set()
            keeper.close()
            await looked.wait()


async def test_a_list_that_expands_is_refused(sqlite_url: str) -> None:
    expanding = Prepared(select(birds).where(birds.c.id.in_(bindparam("keys", expanding=True))))
    async with open_database(sqlite_url) as database:
        with pytest.raises(TypeError, match="expands"):
            await database.read(expanding.rows, {"keys": ["rook"]})
