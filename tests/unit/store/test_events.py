"""Events: numbered without gaps, also when many tasks and two processes write at once."""

from __future__ import annotations

import math
import sys

import anyio
import pytest

from server.errors import RookeryError
from server.models import EventKind
from server.store import Store, open_store
from tests.unit.store.records import some_text, started


async def test_events_are_read_in_order_after_a_number_and_by_kind(store: Store) -> None:
    await started(store, "s1")

    added = await store.append_events(
        "s1", 4, [(EventKind.TEXT, {"text": "a"}), (EventKind.TOOL_CALL, {"tool": "Bash"})]
    )

    assert [event.seq for event in added] == [3, 4]
    assert await store.events("s1", after=2) == added
    assert await store.events("s1", after=0, limit=3) == [*await store.events("s1", limit=2), added[0]]
    assert await store.events("s1", kinds=[EventKind.TOOL_CALL]) == added[1:]
    assert await store.events("s1", kinds=[]) == []
    assert await store.last_seq("s1") == 4


async def test_events_of_a_missing_session_are_refused(store: Store) -> None:
    with pytest.raises(RookeryError, match="session_not_found"):
        await store.append_events("s1", 1, some_text(1))

    assert await store.events("s1") == []
    assert await store.last_seq("s1") == 0


async def test_data_from_the_sandbox_is_kept_however_odd(store: Store) -> None:
    await started(store, "s1")
    data = {"nul": "\0", "lone": "\ud800", "numbers": [math.nan, -math.inf, 2**80], "k\ud800": "Ω"}

    await store.append_events("s1", 1, [(EventKind.TOOL_CALL, data)])

    (event,) = await store.events("s1", kinds=[EventKind.TOOL_CALL])
    assert event.data == {**data, "numbers": [None, None, 2**80]}


async def test_data_nested_beyond_reason_is_refused_and_leaves_nothing(store: Store) -> None:
    await started(store, "s1")
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"d": deep}

    with pytest.raises(RookeryError, match="invalid_argument"):
        await store.append_events("s1", 1, [*some_text(1), (EventKind.TEXT, deep)])

    assert await store.last_seq("s1") == 2
    assert len(await store.append_events("s1", 1, some_text(1))) == 1
    # Taken apart by hand: the interpreter's own way is recursive.
    while deep:
        deep = deep.pop("d")  # type: ignore[assignment]  # every value is such a dictionary


async def test_numbers_have_no_gaps_when_many_tasks_write(store: Store) -> None:
    await started(store, "s1")
    await started(store, "s2")

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(store.append_events, f"s{1 + number % 2}", 1, some_text(1 + number % 4))

    for session_id in ("s1", "s2"):
        numbers = [event.seq for event in await store.events(session_id, limit=1000)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert await store.last_seq(session_id) == len(numbers)


async def test_numbers_have_no_gaps_when_two_processes_write(url: str) -> None:
    async with open_store(url) as store:
        await started(store, "s1")
        command = [sys.executable, "-m", "tests.unit.store.writer", url, "append", "s1", "60"]

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(anyio.run_process, command)
                for _ in range(30):
                    await store.append_events("s1", 1, some_text(2))

        events = await store.events("s1", limit=1000)
        assert [event.seq for event in events] == list(range(1, 2 + 2 * 60 * 3 + 30 * 2 + 1))
