"""A wall clock that jumps, or a machine that slept, frees nobody's budget and kills nobody's server (row B08)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from server.budgets import Cap, Caps, Reservation, Shortage
from server.clock import Clock
from server.gateway.grants import GrantTable
from server.gateway.limiter import FleetLimiter
from server.leases import HEARTBEAT_LOST, Leases
from server.models import ServerRecord
from server.store import open_store
from tests.unit.store.records import started
from tests.unit.store.test_budgets import a_claim, settled


@dataclass(frozen=True)
class JumpingClock(Clock):
    """A clock that a test sets."""

    at: list[datetime] = field(default_factory=lambda: [datetime(2026, 11, 23, 12, tzinfo=UTC)])

    def now(self) -> datetime:
        return self.at[0]

    def jump(self, by: timedelta) -> None:
        self.at[0] += by


YEARS = [timedelta(days=400), timedelta(days=-400)]


@pytest.mark.parametrize("by", YEARS, ids=["forward", "back"])
async def test_b08_no_budget_but_the_days_own_begins_anew_when_the_clock_jumps(url: str, by: timedelta) -> None:
    """Row B08: reservations are settled and caps of session, tree and principal hold, whatever the date is."""
    clock = JumpingClock()
    async with open_store(url, clock=clock) as store:
        await started(store, "s1", budget_tokens=10_000)
        caps = Caps(tree=Cap(tokens=10_000), principal=Cap(tokens=10_000))
        assert isinstance(await store.reserve(a_claim("r1", "s1", caps=caps, at=clock.now())), Reservation)
        clock.jump(by)
        answer = await store.reserve(a_claim("r2", "s1", caps=caps, at=clock.now()))
        assert isinstance(answer, Shortage)
        # The request that ran over the jump is settled in the accounts that it had reserved in, its day's included.
        await settled(store, "r1", "s1", 7500, started_at=clock.now())
        standing = await store.standing("s1")
        assert (standing.spent_tokens, standing.reserved_tokens) == (8500, 0)
        assert isinstance(await store.reserve(a_claim("r3", "s1", caps=caps, at=clock.now())), Shortage)


@pytest.mark.parametrize("by", YEARS, ids=["forward", "back"])
async def test_b08_a_living_servers_reservations_are_not_charged_when_the_clock_jumps(
    url: str, tmp_path: Path, by: timedelta
) -> None:
    """Row B08: a lease of this host is a lock of the kernel, which no clock opens."""
    clock = JumpingClock()
    async with open_store(url, clock=clock) as store:
        await started(store, "s1")
        living = Leases(tmp_path, "living")
        await store.register_server("living")
        await store.reserve(a_claim("r1", "s1", owner="living"))
        with living.hold():
            clock.jump(by)
            others = Leases(tmp_path, "other")
            dead = {server.id for server in await store.servers() if not others.alive(server)}
            assert await store.charge_lost(dead) == 0
        dead = {server.id for server in await store.servers() if not Leases(tmp_path, "other").alive(server)}
        assert await store.charge_lost(dead) == 1


@pytest.mark.parametrize("by", YEARS, ids=["forward", "back"])
async def test_b08_a_server_of_another_host_is_judged_by_the_databases_clock_alone(
    url: str, tmp_path: Path, by: timedelta
) -> None:
    """Row B08: on a shared Postgres neither the clock of who says that it lives nor of who asks decides."""
    if url.startswith("sqlite"):
        pytest.skip("hosts share no SQLite database")
    there, here = JumpingClock(), JumpingClock()
    leases = Leases(tmp_path, "here")
    async with open_store(url, clock=there) as theirs, open_store(url, clock=here) as ours:
        await theirs.register_server("there", place="elsewhere")
        here.jump(by)
        there.jump(-by)
        assert await theirs.heartbeat("there")
        [server] = await ours.servers()
        assert leases.alive(server)
        assert server.silent_for >= timedelta()


def test_b08_a_server_of_another_host_that_was_silent_for_long_is_dead(tmp_path: Path) -> None:
    at = datetime(2026, 11, 23, 12, tzinfo=UTC)
    server = ServerRecord(id="there", pid=1, host="elsewhere", started_at=at, heartbeat_at=at)
    leases = Leases(tmp_path, "here")
    assert leases.alive(server.model_copy(update={"silent_for": HEARTBEAT_LOST - timedelta(seconds=1)}))
    assert not leases.alive(server.model_copy(update={"silent_for": HEARTBEAT_LOST}))


async def test_b08_a_pause_of_the_limiter_is_as_long_as_the_api_said_when_the_clock_jumps() -> None:
    """Row B08: waits go by the monotonic clock."""
    clock = JumpingClock()
    limiter = FleetLimiter(clock, lambda: 0.0)
    grant = GrantTable(clock).open()
    async with limiter.slot("m", grant) as slot:
        slot.answered(429, 0.2)
        refused_at = anyio.current_time()
    clock.jump(timedelta(days=400))
    with anyio.fail_after(30):
        async with limiter.slot("m", grant):
            assert anyio.current_time() - refused_at >= 0.2
