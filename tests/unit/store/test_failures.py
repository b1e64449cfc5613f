"""What a database does when the machine fails: a typed error with a remedy, nothing half-written, and on it goes."""

from __future__ import annotations

import itertools
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from asyncio import CancelledError, create_task
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from sqlalchemy import Connection

from server.errors import ErrorCode, RookeryError
from server.models import EventKind, SessionState
from server.store import Store, database, open_store
from tests.unit.store.records import ALICE, START, a_request, end_turn, idle, some_text, started

LARGE = [(EventKind.TEXT, {"text": "x" * 100_000})] * 10


@pytest.fixture
def path(sqlite_url: str) -> Path:
    return Path(sqlite_url.removeprefix("sqlite:///"))


@contextmanager
def unavailable(remedy: str) -> Iterator[None]:
    with pytest.raises(RookeryError, match=remedy) as failure:
        yield
    assert failure.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert failure.value.detail
    # What is shown to callers names no file of this machine.
    assert "/" not in failure.value.message


@asynccontextmanager
async def another_process(*arguments: str) -> AsyncIterator[anyio.abc.Process]:
    """The writer of this folder with these arguments; killed at the end."""
    command = [sys.executable, "-m", "tests.unit.store.writer", *arguments]
    async with await anyio.open_process(command, stderr=None) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()


async def line(process: anyio.abc.Process) -> str:
    assert process.stdout is not None
    with anyio.fail_after(20):
        return (await process.stdout.receive()).decode()


async def consistent(store: Store, session_id: str) -> None:
    """Everything that is written together is there together."""
    session = await store.session(ALICE, session_id)
    events = await store.events(session_id, limit=100_000)
    turns = await store.turns(session_id)
    states = [event.data for event in events if event.kind is EventKind.STATE]
    assert [event.seq for event in events] == list(range(1, await store.last_seq(session_id) + 1))
    assert states[-1]["to"] == session.state
    assert all(left["to"] == right["from"] for left, right in itertools.pairwise(states))
    assert [turn.number for turn in turns] == list(range(1, session.turn + 1))
    assert sum(event.kind is EventKind.TURN_STARTED for event in events) == len(turns)
    assert sum(event.kind is EventKind.TURN_ENDED for event in events) == sum(
        turn.ended_at is not None for turn in turns
    )
    costs = [await store.turn_cost(session_id, turn.number) for turn in turns]
    assert (await store.cost(session_id)).requests == sum(cost.requests for cost in costs)


async def test_c04_a_locked_database_is_a_typed_error_and_loses_nothing(
    sqlite_url: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C04: another process holds the write lock."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    async with open_store(sqlite_url) as store:
        await started(store, "s1")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")

            with unavailable("Another process holds the database"):
                await store.move("s1", SessionState.RUNNING)
            # Readers wait for no writer.
            assert (await store.session(ALICE, "s1")).state is SessionState.STARTING
            other.execute("ROLLBACK")

        assert (await store.move("s1", SessionState.RUNNING)).state is SessionState.RUNNING
        await consistent(store, "s1")


async def test_c04_a_short_lock_of_another_process_is_waited_for(sqlite_url: str, path: Path) -> None:
    """C04: two servers on one file wait for each other."""
    async with open_store(sqlite_url) as store:
        await started(store, "s1")
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            written = anyio.Event()

            async def write() -> None:
                await store.append_events("s1", 1, some_text(2))
                written.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write)
                with anyio.move_on_after(0.2):
                    await written.wait()
                assert not written.is_set()
                other.execute("COMMIT")

        assert await store.last_seq("s1") == 4


async def test_c04_a_full_disk_is_a_typed_error_and_nothing_is_half_written(sqlite_url: str) -> None:
    """C04: SQLite itself says that there is no page left."""
    async with open_store(sqlite_url) as store:
        await idle(store, "s1")
        pages = await store._database.write(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
        await store._database.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count = {pages + 20}"))
        before = await store.last_seq("s1")

        with unavailable("disk that holds the database is full"):
            await store.append_events("s1", 1, LARGE)

        assert await store.last_seq("s1") == before
        await consistent(store, "s1")
        # What needs no more space works on, and all does once there is space again.
        await store.move("s1", SessionState.RUNNING)
        await store._database.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count = 100000"))
        await store.append_events("s1", 1, LARGE)
        await consistent(store, "s1")


async def test_c04_a_file_that_cannot_grow_is_a_typed_error_and_nothing_is_half_written(sqlite_url: str) -> None:
    """C04: the operating system refuses the write, as it does on a full disk or beyond a quota."""
    async with open_store(sqlite_url) as store:
        await started(store, "s1")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        try:
            with unavailable("disk"):
                await store.append_events("s1", 1, LARGE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        assert await store.last_seq("s1") == 2
        await store.append_events("s1", 1, LARGE)
        await consistent(store, "s1")


async def test_c04_a_read_only_database_says_so(sqlite_url: str) -> None:
    """C04: no write access."""
    async with open_store(sqlite_url) as store:
        await started(store, "s1")
        await store._database.write(lambda c: c.exec_driver_sql("PRAGMA query_only = ON"))

        with unavailable("cannot be written. Give this user write access"):
            await store.append_events("s1", 1, some_text(1))

        assert len(await store.events("s1")) == 2


async def test_c04_a_file_that_is_no_database_is_refused_and_left_alone(sqlite_url: str, path: Path) -> None:
    """C04: the file was overwritten."""
    path.parent.mkdir()
    path.write_bytes(b"These are my notes.\n" * 500)

    with unavailable("not a database"):
        async with open_store(sqlite_url):
            pass

    assert path.read_bytes() == b"These are my notes.\n" * 500


async def test_c04_a_damaged_database_says_so(sqlite_url: str, path: Path) -> None:
    """C04: pages in the midst of the file are garbage."""
    async with open_store(sqlite_url) as store:
        await started(store, "s1")
        await store.append_events("s1", 1, LARGE)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * (size - 8192))

    with unavailable("damaged"):
        async with open_store(sqlite_url) as store:
            await store.events("s1")


async def test_c04_a_directory_in_the_place_of_the_file_is_refused(sqlite_url: str, path: Path) -> None:
    """C04: the path cannot be opened."""
    path.mkdir(parents=True)

    with unavailable("cannot be opened"):
        async with open_store(sqlite_url):
            pass


async def test_c04_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """C04: a file lies where the directory should be."""
    (tmp_path / "home").write_text("")

    with unavailable("cannot be used"):
        async with open_store(f"sqlite:///{tmp_path / 'home' / 'rookery.db'}"):
            pass


async def test_c04_a_lost_write_ahead_log_loses_at_most_the_latest_and_never_a_half(
    sqlite_url: str, path: Path
) -> None:
    """C04: somebody copied the main file alone."""
    async with open_store(sqlite_url) as store:
        await idle(store, "s1")
    async with open_store(sqlite_url) as store:
        await store.move("s1", SessionState.RUNNING)
        copy = path.parent / "copy.db"
        copy.write_bytes(path.read_bytes())

    async with open_store(f"sqlite:///{copy}") as store:
        assert (await store.session(ALICE, "s1")).state is SessionState.IDLE
        await consistent(store, "s1")


async def test_c01_a_process_killed_in_a_transaction_leaves_no_trace_of_it(url: str) -> None:
    """C01: kill -9 between two statements of one transaction."""
    async with open_store(url) as store:
        await started(store, "s1")
        async with another_process(url, "stall", "s1") as process:
            assert "stalled" in await line(process)
            process.kill()
            await process.wait()

        assert await store.last_seq("s1") == 2
        assert (await store.session(ALICE, "s1")).state is SessionState.STARTING
        await store.append_events("s1", 1, some_text(1))
        await consistent(store, "s1")


async def test_c01_processes_killed_at_any_moment_leave_a_consistent_store(url: str) -> None:
    """C01: kill -9 in the midst of busy turns, again and again, beside a server that works on."""
    async with open_store(url) as store:
        for number in range(3):
            session_id = f"s{number}"
            await idle(store, session_id)
            async with another_process(url, "turns", session_id) as process:
                for _ in range(3 + number):
                    assert "played" in await line(process)
                    await store.record_request(a_request(f"own-{number}-{_}", "other"))
                process.kill()
                await process.wait()

            await consistent(store, session_id)
            session = await store.session(ALICE, session_id)
            if session.state.is_busy:
                await end_turn(store, session_id, session.turn)
            assert session.turn > 3
        assert (await store.cost("other")).requests == 3 + 4 + 5


async def test_a_transaction_whose_caller_is_cancelled_is_done_in_full(sqlite_url: str) -> None:
    entered, proceed = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE sessions SET title = 'first half'")
        entered.set()
        proceed.wait(10)
        connection.exec_driver_sql("UPDATE sessions SET policy = 'second half'")

    async def cancelled_by_anyio(store: Store) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store._database.write, slow)
            await anyio.to_thread.run_sync(entered.wait)
            tasks.cancel_scope.cancel()
            proceed.set()

    async def cancelled_by_asyncio(store: Store) -> None:
        task = create_task(store._database.write(slow))
        await anyio.to_thread.run_sync(entered.wait)
        task.cancel()
        with pytest.raises(CancelledError):
            await task
        # The caller is gone, its transaction is not: the next one waits for it.
        written = anyio.Event()

        async def write() -> None:
            await store.heartbeat("a")
            written.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            with anyio.move_on_after(0.2):
                await written.wait()
            assert not written.is_set()
            proceed.set()

    for cancel in (cancelled_by_anyio, cancelled_by_asyncio):
        entered.clear()
        proceed.clear()
        session_id = cancel.__name__
        async with open_store(sqlite_url) as store:
            await started(store, session_id)
            with anyio.fail_after(10):
                await cancel(store)
                await store.append_events(session_id, 1, some_text(1))

            session = await store.session(ALICE, session_id)
            assert (session.title, session.policy) == ("first half", "second half")


async def test_a_store_that_closes_waits_for_a_transaction_whose_caller_is_gone(sqlite_url: str, path: Path) -> None:
    """Its process may end next; and what it leaves open keeps the log from being folded into the file."""
    entered = threading.Event()

    def slow(connection: Connection) -> None:
        entered.set()
        time.sleep(0.2)
        connection.exec_driver_sql("UPDATE sessions SET title = 'done'")

    async with open_store(sqlite_url) as store:
        await started(store, "s1")
        task = create_task(store._database.write(slow))
        await anyio.to_thread.run_sync(entered.wait)
        task.cancel()
        with pytest.raises(CancelledError):
            await task
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT title FROM sessions").fetchall() == [("done",)]
    assert not path.with_name(f"{path.name}-wal").exists()


async def test_a_store_that_is_closed_says_so_at_once(sqlite_url: str) -> None:
    async with open_store(sqlite_url) as store:
        await started(store, "s1")
    with anyio.fail_after(10):
        for use in (store.servers, lambda: store.heartbeat("a"), lambda: store.session(ALICE, "s1")):
            with unavailable("going away"):
                await use()


async def test_a_caller_that_is_cancelled_in_the_queue_changes_nothing(sqlite_url: str) -> None:
    entered, proceed = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        entered.set()
        proceed.wait(10)

    async with open_store(sqlite_url) as store:
        await started(store, "s1")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store._database.write, slow)
            await anyio.to_thread.run_sync(entered.wait)
            with anyio.move_on_after(0.05) as waited:
                await store.append_events("s1", 1, some_text(1))
            proceed.set()

        assert waited.cancelled_caught
        assert await store.last_seq("s1") == 2


async def test_a_queue_that_does_not_move_is_a_typed_error(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "QUEUE_TIMEOUT_S", 0.05)
    entered, proceed = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        entered.set()
        proceed.wait(10)

    async with open_store(sqlite_url) as store:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store._database.write, slow)
            await anyio.to_thread.run_sync(entered.wait)
            with unavailable("too busy"):
                await store.heartbeat("a")
            proceed.set()

        assert await store.heartbeat("a") is False


async def test_a_sqlite_that_is_too_old_is_refused(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))

    with unavailable("too old"):
        async with open_store(sqlite_url):
            pass


async def test_a_broken_rule_of_the_schema_is_our_own_fault(store: Store) -> None:
    await started(store, "s1")

    with pytest.raises(RookeryError) as broken:
        await started(store, "s1")

    assert broken.value.code is ErrorCode.INTERNAL
    assert not broken.value.retryable
    await consistent(store, "s1")


async def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(RookeryError, match=r"invalid_argument: .*zone"):
        await started(store, "s1", created_at=START.replace(tzinfo=None))


async def test_what_a_reader_runs_cannot_write(store: Store) -> None:
    with pytest.raises(RookeryError):
        await store._database.read(lambda c: c.exec_driver_sql("DELETE FROM sessions"))


def test_the_parameters_of_a_failed_statement_reach_no_message(sqlite_url: str) -> None:
    code = (
        "import anyio, sys\n"
        "from server.errors import RookeryError\n"
        "from server.store import open_store\n"
        "from tests.unit.store.records import *\n"
        "async def main():\n"
        "    async with open_store(sys.argv[1]) as store:\n"
        "        for _ in range(2):\n"
        "            try: await store.create_session(a_session('s1'), a_turn('s1', prompt='canary'))\n"
        "            except RookeryError as error: print(error, error.detail)\n"
        "anyio.run(main)\n"
    )

    done = subprocess.run([sys.executable, "-c", code, sqlite_url], capture_output=True, text=True, check=True)

    assert "UNIQUE constraint failed: sessions.id" in done.stdout
    assert "canary" not in done.stdout + done.stderr
