"""What a dead server did not write of its sandboxes' time: charged once, by whoever comes, and within bounds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest
from sqlalchemy import Connection, Row, Table, select, update

from server.models import NANO_USD, RunningSandbox, SandboxTime
from server.store import Store, open_store
from server.store.running_sandboxes import HEARTBEAT, LONGEST_STRETCH
from server.store.tables import running_sandboxes, sandbox_time, servers, sessions
from tests.unit.store.records import ALICE, START, ended, started
from tests.unit.store.test_clock_jumps import YEARS, JumpingClock

PRICE = NANO_USD // 1000
LIFE = timedelta(seconds=300)
"""How long a sandbox of the cloud runs on without its server."""

_numbers = itertools.count()


def a_sandbox(session_id: str, owner: str = "dead", **fields: Any) -> RunningSandbox:
    values: dict[str, Any] = {
        "session_id": session_id,
        "line_id": f"line-{next(_numbers)}",
        "owner": owner,
        "principal": ALICE,
        "root_id": session_id,
        "kind": "bubblewrap",
        "since": START,
        "nano_usd_per_s": PRICE,
        "lasts_s": 0,
    }
    return RunningSandbox.model_validate(values | fields)


def a_cloud_sandbox(session_id: str, owner: str = "dead", **fields: Any) -> RunningSandbox:
    return a_sandbox(session_id, owner, kind="e2b", lasts_s=round(LIFE.total_seconds()), **fields)


def _rows_of(connection: Connection, table: Table) -> Sequence[Row[Any]]:
    return connection.execute(select(table)).all()


class World:
    """A store whose time a test sets: on Postgres too, where the database's own clock is what counts."""

    def __init__(self, store: Store, clock: JumpingClock) -> None:
        self.store = store
        self.clock = clock

    async def _set(self, table: Any, where: Any, **values: Any) -> None:
        query = update(table).where(where).values(**values)
        await self.store._database.write(lambda connection: connection.execute(query) and None)

    async def running(self, sandbox: RunningSandbox, ago: timedelta, silent: timedelta | None = None) -> None:
        """Enter a sandbox some time ago, whose server was heard of last so long ago, if it is entered at all."""
        await self.store.enter_sandbox(sandbox)
        now = await self.now()
        await self._set(running_sandboxes, running_sandboxes.c.line_id == sandbox.line_id, since=now - ago)
        if silent is not None:
            known = {server.id for server in await self.store.servers()}
            if sandbox.owner not in known:
                await self.store.register_server(sandbox.owner)
            await self._set(servers, servers.c.id == sandbox.owner, heartbeat_at=now - silent)

    async def holds(self, session_id: str, owner: str | None) -> None:
        """Say who holds a session."""
        await self._set(sessions, sessions.c.id == session_id, owner=owner)

    async def now(self) -> Any:
        """The present, by the clock of the heartbeats."""
        await self.store.register_server("clock")
        moment = next(server.heartbeat_at for server in await self.store.servers() if server.id == "clock")
        await self.store.remove_server("clock")
        return moment

    async def passes(self, time: timedelta) -> None:
        """Let time pass: the clock of a database cannot be set, so all that is written down moves back."""
        rows = {running_sandboxes: ("since", "ends_by"), servers: ("heartbeat_at",)}
        for table, names in rows.items():
            key = table.primary_key.columns[0]
            for row in await self.store._database.read(_rows_of, table):
                moved = {name: getattr(row, name) - time for name in names if getattr(row, name) is not None}
                await self._set(table, key == getattr(row, key.name), **moved)

    async def lines(self) -> list[SandboxTime]:
        query = select(sandbox_time).order_by(sandbox_time.c.started_at)
        found = await self.store._database.read(lambda connection: connection.execute(query).all())
        return [SandboxTime(**row._mapping) for row in found]

    async def seconds(self, session_id: str = "s1") -> float:
        return (await self.store.cost(session_id)).sandbox_seconds

    async def left(self) -> list[str]:
        query = select(running_sandboxes.c.session_id).order_by(running_sandboxes.c.session_id)
        return await self.store._database.read(lambda connection: list(connection.execute(query).scalars()))


@pytest.fixture
async def world(url: str) -> Any:
    clock = JumpingClock()
    async with open_store(url, clock=clock) as store:
        yield World(store, clock)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def about(count: float) -> Any:
    """On Postgres time passes between two statements."""
    return pytest.approx(count, abs=1)


async def test_a_dead_servers_sandbox_is_charged_up_to_its_last_heartbeat_once(world: World) -> None:
    await started(world.store, "s1", budget_nano_usd=NANO_USD)
    await world.running(a_sandbox("s1"), ago=seconds(40), silent=seconds(10))
    assert await world.store.charge_lost([]) == 0
    assert await world.seconds() == 0
    assert await world.store.charge_lost(["dead"]) == 1
    assert await world.seconds() == about(30)
    (line,) = await world.lines()
    assert line.kind == "bubblewrap"
    assert line.nano_usd == -(-line.milliseconds * PRICE // 1000)
    assert line.ended_at - line.started_at == about_span(line.milliseconds)
    assert (await world.store.standing("s1")).spent_nano_usd == line.nano_usd
    await world.store.remove_server("dead")
    assert await world.store.charge_lost(["dead"]) == 0
    assert await world.lines() == [line]
    assert await world.left() == []


def about_span(milliseconds: int) -> Any:
    return pytest.approx(timedelta(milliseconds=milliseconds), abs=timedelta(milliseconds=1))


async def test_of_many_that_clean_up_at_once_one_charges(url: str) -> None:
    async with open_store(url) as one, open_store(url) as two:
        await started(one, "s1")
        await World(one, JumpingClock()).running(a_sandbox("s1"), ago=seconds(40), silent=seconds(10))
        charged: list[int] = []

        async def clean_up(store: Store) -> None:
            charged.append(await store.charge_lost(["dead"]))

        async with anyio.create_task_group() as tasks:
            for store in (one, two) * 4:
                tasks.start_soon(clean_up, store)
        assert sorted(charged) == [0] * 7 + [1]
        assert (await one.cost("s1")).sandbox_seconds == about(30)


async def test_what_a_living_server_runs_is_left_to_it(world: World) -> None:
    await world.running(a_sandbox("s1", "living"), ago=seconds(40), silent=seconds(1))
    assert await world.store.charge_lost(["dead"]) == 0
    assert await world.left() == ["s1"]


async def test_a_line_moves_on_what_is_still_to_be_written_and_the_last_one_ends_it(world: World) -> None:
    first = a_sandbox("s1", since=world.clock.now())
    await world.running(first, ago=seconds(60), silent=seconds(0))
    second = a_sandbox("s1", since=world.clock.now())
    assert await world.store.record_sandbox_time(first.line(world.clock.now(), 60_000), second)
    assert await world.store.charge_lost(["dead"]) == 0
    assert await world.seconds() == 60
    third, fourth = (a_sandbox("s1", since=world.clock.now()) for _ in range(2))
    await world.store.enter_sandbox(third)
    assert await world.store.record_sandbox_time(third.line(world.clock.now(), 5000), fourth)
    assert await world.store.record_sandbox_time(fourth.line(world.clock.now(), 2000))
    assert await world.left() == []
    assert await world.store.charge_lost(["dead"]) == 0
    assert await world.seconds() == 67


async def test_a_server_that_was_taken_for_dead_and_comes_back_writes_no_time_twice(world: World) -> None:
    first, second = a_sandbox("s1"), a_sandbox("s1")
    await world.running(first, ago=seconds(50), silent=seconds(10))
    assert await world.store.charge_lost(["dead"]) == 1
    assert not await world.store.record_sandbox_time(first.line(world.clock.now(), 50_000), second)
    assert await world.seconds() == about(40)
    await world.store.enter_sandbox(second)
    assert await world.store.record_sandbox_time(second.line(world.clock.now(), 1000))
    assert await world.seconds() == about(41)


async def test_a_sandbox_that_is_entered_again_stays_as_it_is(world: World) -> None:
    sandbox = a_sandbox("s1")
    await world.running(sandbox, ago=seconds(30), silent=seconds(0))
    await world.store.enter_sandbox(sandbox)
    assert await world.lines() == []
    assert await world.store.charge_lost(["dead"]) == 1
    assert await world.seconds() == about(30)


async def test_time_of_a_session_that_was_deleted_is_charged_all_the_same(world: World) -> None:
    await ended(world.store, "s1")
    await world.running(a_sandbox("s1"), ago=seconds(20), silent=seconds(0))
    await world.running(a_cloud_sandbox("s2"), ago=seconds(20), silent=seconds(0))
    await world.store.delete_session(ALICE, "s1")
    assert await world.store.charge_lost(["dead"]) == 2
    assert [await world.seconds(session) for session in ("s1", "s2")] == [about(20), about(20)]


# --- bounds -------------------------------------------------------------------------------------------------------


async def test_b08_an_unwritten_stretch_is_no_longer_than_a_server_leaves_one_unwritten(world: World) -> None:
    """Row B08: the wall clock, and with it the heartbeat, jumped."""
    await world.running(a_sandbox("s1"), ago=timedelta(days=400), silent=seconds(0))
    await world.running(a_sandbox("s2"), ago=-timedelta(days=400), silent=seconds(0))
    await world.running(a_cloud_sandbox("s3"), ago=timedelta(days=400), silent=seconds(0))
    assert await world.store.charge_lost(["dead"]) == 2
    longest = LONGEST_STRETCH.total_seconds()
    assert [await world.seconds(session) for session in ("s1", "s2")] == [longest, 0]
    assert await world.seconds("s3") == longest + (HEARTBEAT + LIFE).total_seconds()
    assert await world.left() == []


@pytest.mark.parametrize("by", YEARS, ids=["forward", "back"])
async def test_b08_a_clock_that_jumped_since_makes_no_local_sandbox_dearer(sqlite_url: str, by: timedelta) -> None:
    """Row B08: what counts is the last heartbeat, however late, or early, the next server comes by its clock."""
    clock = JumpingClock()
    async with open_store(sqlite_url, clock=clock) as store:
        world = World(store, clock)
        await world.running(a_sandbox("s1", since=clock.now()), ago=seconds(40), silent=seconds(10))
        clock.jump(by)
        await store.charge_lost(["dead"])
        assert await world.seconds() == (30 if by > timedelta() else 0)


async def test_a_server_that_nobody_knows_any_more_is_charged_for_what_it_can_have_left_at_most(world: World) -> None:
    await world.running(a_sandbox("s1", "unknown"), ago=seconds(20))
    await world.running(a_sandbox("s2", "unknown"), ago=timedelta(days=1))
    assert await world.store.charge_lost([]) == 2
    assert await world.seconds("s1") == about(20)
    assert await world.seconds("s2") == LONGEST_STRETCH.total_seconds()


# --- sandboxes that outlive their server --------------------------------------------------------------------------


async def test_a_sandbox_of_the_cloud_is_charged_until_its_session_is_looked_after(world: World) -> None:
    await started(world.store, "s1")
    await world.holds("s1", "dead")
    await world.running(a_cloud_sandbox("s1"), ago=seconds(40), silent=seconds(10))
    # Its agent may be taken over yet.
    assert await world.store.charge_lost(["dead"]) == 0
    await world.store.remove_server("dead")
    await world.holds("s1", "next")
    await world.passes(seconds(20))
    assert await world.store.charge_lost([]) == 0
    await world.holds("s1", None)
    assert await world.store.charge_lost([]) == 1
    assert await world.store.charge_lost([]) == 0
    assert await world.seconds() == about(60)


async def test_a_sandbox_of_the_cloud_is_charged_no_longer_than_it_lasts_without_a_server(world: World) -> None:
    await started(world.store, "s1")
    await world.holds("s1", "dead")
    await world.running(a_cloud_sandbox("s1"), ago=seconds(40), silent=seconds(10))
    assert await world.store.charge_lost(["dead"]) == 0
    await world.store.remove_server("dead")
    await world.passes(timedelta(hours=1))
    # Nobody can take it over any more: it was paused.
    assert await world.store.charge_lost([]) == 1
    assert await world.seconds() == about(30 + (HEARTBEAT + LIFE).total_seconds())
    assert await world.left() == []


@pytest.mark.parametrize("struck_off", [False, True])
async def test_who_takes_an_agent_over_goes_on_where_the_dead_servers_time_is_charged_to(
    world: World, struck_off: bool
) -> None:
    await started(world.store, "s1")
    await world.holds("s1", "dead")
    await world.running(a_cloud_sandbox("s1"), ago=seconds(40), silent=seconds(10))
    if struck_off:
        await world.store.charge_lost(["dead"])
        await world.store.remove_server("dead")
    await world.holds("s1", "next")
    await world.store.register_server("next")
    await world.passes(seconds(5))
    mine, after = (a_cloud_sandbox("s1", "next", since=world.clock.now()) for _ in range(2))
    await world.store.enter_sandbox(mine)
    assert await world.seconds() == about(45)
    assert await world.store.charge_lost(["dead"]) == 0
    assert await world.store.record_sandbox_time(mine.line(world.clock.now(), 3000), after)
    assert await world.seconds() == about(48)
    assert await world.left() == ["s1"]


async def test_who_takes_over_long_after_the_sandbox_was_paused_charges_no_more_than_it_lasted(world: World) -> None:
    await started(world.store, "s1")
    await world.holds("s1", "dead")
    await world.running(a_cloud_sandbox("s1"), ago=seconds(40), silent=seconds(10))
    await world.passes(timedelta(hours=1))
    await world.store.enter_sandbox(a_cloud_sandbox("s1", "next", since=world.clock.now()))
    assert await world.seconds() == about(30 + (HEARTBEAT + LIFE).total_seconds())


async def test_what_a_server_itself_left_unwritten_counts_no_time_that_the_sandbox_was_alone(world: World) -> None:
    await started(world.store, "s1")
    await world.running(a_cloud_sandbox("s1", "living"), ago=timedelta(hours=1), silent=seconds(0))
    await world.store.enter_sandbox(a_cloud_sandbox("s1", "living", since=world.clock.now()))
    assert await world.seconds() == LONGEST_STRETCH.total_seconds()
