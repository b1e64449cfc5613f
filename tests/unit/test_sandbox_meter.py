"""The meter: all of a sandbox's time is written, once, whatever becomes of a single write."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import anyio
import pytest

from server.clock import SYSTEM_CLOCK
from server.errors import ErrorCode, RookeryError
from server.models import RunningSandbox, SandboxTime
from server.sandbox_meter import SandboxMeter
from server.sandboxes.base import Capabilities
from server.services import Services
from server.store import Store, open_store
from tests.unit.store.records import started

DOWN: Final = RookeryError(ErrorCode.STORAGE_UNAVAILABLE, "The disk is full.")


class Faults:
    """A store in front of a real one, of which a test says what becomes of the next calls."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.before: list[bool] = []
        """For each of the next calls, whether it fails with nothing done."""
        self.after: list[bool] = []
        """For each of the next calls that were done, whether its answer is lost."""

    async def enter_sandbox(self, sandbox: RunningSandbox) -> None:
        self._fail(self.before)
        await self._store.enter_sandbox(sandbox)
        self._fail(self.after)

    async def record_sandbox_time(self, line: SandboxTime, then: RunningSandbox | None) -> bool:
        self._fail(self.before)
        entered = await self._store.record_sandbox_time(line, then)
        self._fail(self.after)
        return entered

    @staticmethod
    def _fail(faults: list[bool]) -> None:
        if faults and faults.pop(0):
            raise DOWN


class Metered:
    """A meter on a session of its own, and what the store holds of it."""

    def __init__(self, path: Path, store: Store, meter: SandboxMeter, faults: Faults) -> None:
        self._path = path
        self.store = store
        self.meter = meter
        self.faults = faults

    def lines(self) -> list[tuple[datetime, datetime]]:
        rows = self._rows("SELECT started_at, ended_at FROM sandbox_time ORDER BY started_at")
        start, end = ([datetime.fromisoformat(row[side]).replace(tzinfo=UTC) for row in rows] for side in (0, 1))
        return list(zip(start, end, strict=True))

    def running(self) -> int:
        return len(self._rows("SELECT 1 FROM running_sandboxes"))

    def _rows(self, query: str) -> list[Any]:
        database = sqlite3.connect(self._path)
        try:
            return database.execute(query).fetchall()
        finally:
            database.close()

    def whole(self, count: int) -> None:
        """As many lines, each of which begins where the one before ends, and nothing that is still to be written."""
        lines = self.lines()
        assert len(lines) == count
        assert [start for start, _ in lines[1:]] == [end for _, end in lines[:-1]]
        assert self.running() == 0


@pytest.fixture
async def metered(tmp_path: Path) -> AsyncIterator[Metered]:
    async with open_store(f"sqlite:///{tmp_path / 'rookery.db'}") as store:
        session = await started(store, "s1")
        await store.register_server("server")
        faults = Faults(store)
        provider = SimpleNamespace(capabilities=Capabilities())
        services = SimpleNamespace(
            settings=SimpleNamespace(sandbox_usd_per_s=0.001),
            store=faults,
            clock=SYSTEM_CLOCK,
            server_id="server",
            provider_of=lambda _: provider,
        )

        async def overspent() -> None:
            raise NotImplementedError

        meter = SandboxMeter(cast(Services, services), session, overspent)
        yield Metered(tmp_path / "rookery.db", store, meter, faults)


async def serve(metered: Metered) -> None:
    """Let it enter the sandbox, as it does first when it serves."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(metered.meter.serve)
        with anyio.fail_after(10):
            while not metered.running():
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()


async def test_a_sandbox_is_entered_while_it_runs_and_taken_out_with_its_last_line(metered: Metered) -> None:
    metered.meter.start()
    await serve(metered)
    assert metered.lines() == []
    await metered.meter.mark()
    assert (len(metered.lines()), metered.running()) == (1, 1)
    await metered.meter.close()
    metered.whole(2)
    await metered.meter.mark()
    metered.whole(2)


async def test_a_meter_that_was_never_started_writes_nothing(metered: Metered) -> None:
    await metered.meter.mark()
    await metered.meter.close()
    assert (metered.lines(), metered.running()) == ([], 0)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_line_whose_writing_failed_is_written_once_later(metered: Metered, when: str) -> None:
    metered.meter.start()
    await serve(metered)
    getattr(metered.faults, when).extend([True, True])
    await metered.meter.mark()
    await metered.meter.mark()
    await metered.meter.mark()
    await metered.meter.close()
    metered.whole(3)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_sandbox_that_could_not_be_entered_at_first_is_charged_from_its_start(
    metered: Metered, when: str
) -> None:
    metered.meter.start()
    began = SYSTEM_CLOCK.now()
    getattr(metered.faults, when).append(True)
    await metered.meter.mark()
    await metered.meter.mark()
    assert metered.running() == 1
    await metered.meter.close()
    metered.whole(2)
    assert metered.lines()[0][0] <= began


async def test_time_goes_on_being_entered_when_others_took_the_server_for_dead(metered: Metered) -> None:
    metered.meter.start()
    await serve(metered)
    await metered.store.charge_lost(["server"])
    assert metered.running() == 0
    await metered.meter.mark()
    await metered.meter.mark()
    assert metered.running() == 1
    await metered.meter.close()
    assert metered.running() == 0


async def test_marks_at_the_same_time_write_no_time_twice(metered: Metered) -> None:
    metered.meter.start()
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(metered.meter.mark)
    await metered.meter.close()
    metered.whole(6)
