"""What the store's answers take with 1,000 stored sessions, beside an empty store: ``python benchmarks/store.py``.

Prints medians in microseconds, side by side from one run, and their ratio; then what writing takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from server.models import EventKind, LedgerEntry, SessionRecord, SessionState, TurnRecord, Usage
from server.requests import CostRequest, ListRequest
from server.store import Store, open_store
from server.store.events import Entry

SESSIONS = 1_000
REQUESTS_OF_A_SESSION = 5
CALLS = 200
NOW = datetime(2026, 11, 23, tzinfo=UTC)

Call = Callable[[Store], Awaitable[object]]

READS: dict[str, Call] = {
    "list_sessions, 20": lambda store: store.sessions("me", ListRequest()),
    "list_sessions, 200": lambda store: store.sessions("me", ListRequest(limit=200)),
    "list_sessions by label": lambda store: store.sessions("me", ListRequest(labels={"team": "7"})),
    "get_costs of a session": lambda store: store.cost_report("me", CostRequest(session_id="s500")),
    "get_costs of all": lambda store: store.cost_report("me", CostRequest()),
    "get_costs of all by model": lambda store: store.cost_report("me", CostRequest(group_by="model")),
    "get_costs of all by day": lambda store: store.cost_report("me", CostRequest(group_by="day")),
    "get_costs of all by label": lambda store: store.cost_report("me", CostRequest(group_by="label")),
    "get_costs of all by session": lambda store: store.cost_report("me", CostRequest(group_by="session")),
    "one session": lambda store: store.session("me", "s500"),
}


async def create(store: Store, number: int) -> None:
    session_id = f"s{number}"
    at = NOW - timedelta(minutes=number)
    session = SessionRecord(
        id=session_id,
        principal="me",
        root_id=session_id,
        title=f"session {number}",
        labels={"team": str(number % 10)},
        state=SessionState.STARTING,
        sandbox_kind="bubblewrap",
        system_prompt="You are careful. " * 50,
        created_at=at,
        updated_at=at,
    )
    await store.create_session(session, TurnRecord(session_id=session_id, number=1, prompt="do it", started_at=at))


async def spend(store: Store, session_id: str, number: int) -> None:
    at = NOW - timedelta(hours=number)
    await store.record_request(
        LedgerEntry(
            id=f"{session_id}-{number}",
            principal="me",
            session_id=session_id,
            root_id=session_id,
            turn=1,
            model=f"claude-{number % 3}",
            status=200,
            complete=True,
            usage=Usage(input_tokens=1_000, output_tokens=100),
            nano_usd=4_500_000,
            started_at=at,
            ended_at=at,
        )
    )


async def append(store: Store, entries: list[Entry]) -> None:
    await store.append_events("s1", 1, entries)


async def median(store: Store, call: Call) -> float:
    """Median of the calls in microseconds, after one that fills the caches."""
    await call(store)
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await call(store)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


async def main() -> None:
    with TemporaryDirectory() as directory:
        async with (
            open_store(f"sqlite:///{Path(directory) / 'empty.db'}") as empty,
            open_store(f"sqlite:///{Path(directory) / 'full.db'}") as full,
        ):
            # The one that calls ask for is there in both.
            await create(empty, 500)
            for number in range(SESSIONS):
                await create(full, number)
                for request in range(REQUESTS_OF_A_SESSION):
                    await spend(full, f"s{number}", request)
            print(f"{'reading (median µs)':32}{'empty':>10}{SESSIONS:>10,}{'ratio':>8}")
            for name, call in READS.items():
                few, many = await median(empty, call), await median(full, call)
                print(f"{name:32}{few:10.0f}{many:10.0f}{many / few:8.2f}")

            print(f"\n{'writing (median µs)':32}")
            entry: Entry = (EventKind.TEXT, {"text": "words " * 20})
            for count in (1, 10, 100):
                taken = await median(full, partial(append, entries=[entry] * count))
                print(f"{f'append_events, {count}':32}{taken:10.0f}")

        for name in ("new.db", "full.db"):
            started = time.perf_counter()
            async with open_store(f"sqlite:///{Path(directory) / name}"):
                taken = (time.perf_counter() - started) * 1e6
            print(f"{f'open_store, {name}':32}{taken:10.0f}")


if __name__ == "__main__":
    anyio.run(main)
