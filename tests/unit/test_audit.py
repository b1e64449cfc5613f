"""Decisions reach the store once, whatever becomes of the server that made them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from server.audit import journal
from server.audit.journal import AuditJournal
from server.audit.trail import AuditTrail
from server.errors import ErrorCode, RookeryError
from server.leases import Leases
from server.store import Store, open_store
from tests.unit.store.records import ALICE
from tests.unit.store.test_decisions import a_decision


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An open store."""
    async with open_store(f"sqlite:///{tmp_path / 'rookery.db'}") as opened:
        yield opened


def trail(store: Store, directory: Path, server_id: str) -> AuditTrail:
    return AuditTrail(store, AuditJournal(directory / "audit", server_id))


def dead(_: str) -> bool:
    return False


async def ids(store: Store) -> list[str]:
    return [row.id for row in await store.decisions(ALICE)]


async def test_what_a_dead_server_had_not_yet_written_is_written_once_by_whoever_comes(
    store: Store, tmp_path: Path
) -> None:
    lost = trail(store, tmp_path, "lost")
    entries = [a_decision(number, because="rm '\ud800 Ünïcode\0'") for number in range(3)]
    for entry in entries:
        lost.add(entry)
    await store.record_decisions(entries[:1])
    others = [trail(store, tmp_path, name) for name in ("one", "other")]
    async with anyio.create_task_group() as tasks:
        for other in others:
            tasks.start_soon(other.recover, dead)
    assert await ids(store) == ["d0", "d1", "d2"]
    assert (await store.decisions(ALICE))[2].model_dump(exclude={"because"}) == entries[2].model_dump(
        exclude={"because"}
    )
    assert list((tmp_path / "audit").iterdir()) == []
    assert await others[0].recover(dead) == 0


async def test_the_file_of_a_living_server_is_left_to_it(store: Store, tmp_path: Path) -> None:
    living, leases = trail(store, tmp_path, "living"), Leases(tmp_path, "other")
    with Leases(tmp_path, "living").hold():
        living.add(a_decision(1))
        assert await trail(store, tmp_path, "other").recover(leases.held) == 0
        await living.flush()
        living.add(a_decision(2))
    assert await trail(store, tmp_path, "other").recover(leases.held) == 1
    assert await ids(store) == ["d1", "d2"]


async def test_a_server_that_cannot_be_looked_at_counts_as_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many_files(*_: object, **__: object) -> int:
        raise OSError(24, "Too many open files")

    with Leases(tmp_path, "living").hold():
        monkeypatch.setattr(os, "open", too_many_files)
        assert Leases(tmp_path, "other").held("living")
        monkeypatch.undo()


async def test_a_file_stays_small_though_some_decision_always_waits(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = len(journal._line(a_decision(100)))
    monkeypatch.setattr(journal, "LONGEST", 10 * line)
    busy, record = trail(store, tmp_path, "busy"), store.record_decisions
    path = tmp_path / "audit" / "busy.jsonl"

    async def record_while_another_comes(entries: list[object]) -> None:
        await record(entries)  # type: ignore[arg-type]
        busy.add(a_decision(len(await ids(store)) + 1))

    monkeypatch.setattr(store, "record_decisions", record_while_another_comes)
    busy.add(a_decision(1))
    for _ in range(40):
        await busy.flush()
        assert path.stat().st_size <= 12 * line
    monkeypatch.setattr(store, "record_decisions", record)
    assert await trail(store, tmp_path, "next").recover(dead) > 0
    assert sorted(await ids(store)) == sorted(f"d{number}" for number in range(1, 42))


async def test_nothing_is_left_of_a_file_once_all_is_in_the_store(store: Store, tmp_path: Path) -> None:
    orderly = trail(store, tmp_path, "orderly")
    orderly.add(a_decision(1))
    await orderly.flush()
    assert (tmp_path / "audit" / "orderly.jsonl").stat().st_size == 0
    orderly.add(a_decision(2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(orderly.serve)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert await ids(store) == ["d1", "d2"]
    assert list((tmp_path / "audit").iterdir()) == []


async def test_what_cannot_be_written_down_is_refused_and_leaves_no_half_a_row(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, write = trail(store, tmp_path, "full"), os.write
    full.add(a_decision(1))
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
    with pytest.raises(RookeryError) as refused:
        full.add(a_decision(2))
    assert refused.value.code is ErrorCode.STORAGE_UNAVAILABLE
    monkeypatch.undo()
    full.add(a_decision(3))
    assert await trail(store, tmp_path, "next").recover(dead) == 2
    assert await ids(store) == ["d1", "d3"]


async def test_what_cannot_be_read_is_kept_and_keeps_no_server_from_starting(store: Store, tmp_path: Path) -> None:
    damaged = trail(store, tmp_path, "damaged")
    damaged.add(a_decision(1))
    path = tmp_path / "audit" / "damaged.jsonl"
    good = path.read_bytes()
    path.write_bytes(b'{"id": 7}\n' + good + good.replace(b"d1", b"d2")[:50])
    assert await trail(store, tmp_path, "next").recover(dead) == 1
    assert await ids(store) == ["d1"]
    assert [kept.name for kept in (tmp_path / "audit").iterdir()] == ["damaged.unreadable"]


async def test_a_store_that_takes_nothing_loses_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: object) -> None:
        raise RookeryError(ErrorCode.STORAGE_UNAVAILABLE, "The disk is full.")

    trail(store, tmp_path, "lost").add(a_decision(1))
    following = trail(store, tmp_path, "next")
    with monkeypatch.context() as patched:
        patched.setattr(store, "record_decisions", refuse)
        assert await following.recover(dead) == 0
    assert await following.recover(dead) == 1
    assert await ids(store) == ["d1"]
