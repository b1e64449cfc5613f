"""Several servers on one store: who is there, and commands that reach the owner of a session."""

from __future__ import annotations

import os
from datetime import timedelta

import anyio
import pytest

from server.errors import RookeryError
from server.store import Store, open_store, processes
from tests.unit.store.records import ALICE, ended, started


async def test_servers_come_show_that_they_live_and_go(store: Store) -> None:
    first = await store.register_server("a")
    second = await store.register_server("b", pid=7, place="elsewhere")

    assert (first.pid, second.host) == (os.getpid(), "elsewhere")
    found = await store.servers()
    assert [server.model_copy(update={"silent_for": timedelta()}) for server in found] == [first, second]
    assert found[0].silent_for > found[1].silent_for > timedelta()
    assert await store.heartbeat("a")
    beaten = (await store.servers())[0]
    assert beaten.heartbeat_at > second.started_at > beaten.started_at
    await store.remove_server("a")
    assert not await store.heartbeat("a")
    assert [server.id for server in await store.servers()] == ["b"]


async def test_commands_reach_the_owner_in_order_once_and_are_answered(store: Store) -> None:
    await started(store, "s1", owner="a")
    await started(store, "s2", owner="b")
    first = await store.send_command("s1", "prompt", {"text": "hello"})
    await store.send_command("s2", "end", {})
    second = await store.send_command("s1", "interrupt", {})

    taken = await store.take_commands("a")

    assert [(command.id, command.kind, command.payload) for command in taken] == [
        (first, "prompt", {"text": "hello"}),
        (second, "interrupt", {}),
    ]
    assert await store.take_commands("a") == []
    assert await store.command_result(first) is None
    await store.finish_command(first, {"turn": 2})
    await store.finish_command(first, {"turn": 3})
    assert await store.command_result(first) == {"turn": 2}
    assert await store.command_result("cmd_unknown") is None


async def test_a_command_that_a_dead_owner_took_goes_to_the_new_one(store: Store) -> None:
    await started(store, "s1", owner="dead")
    await started(store, "s2", owner="dead")
    undone = await store.send_command("s1", "interrupt", {})
    done = await store.send_command("s2", "interrupt", {})
    await store.take_commands("dead")
    await store.finish_command(done, {})

    for session_id in ("s1", "s2"):
        assert await store.claim(session_id, "alive", expect_owner="dead")

    assert [command.id for command in await store.take_commands("alive")] == [undone]
    assert await store.take_commands("dead") == []


async def test_a_command_is_taken_by_one_of_many_takers(url: str) -> None:
    taken: list[str] = []
    async with open_store(url) as one, open_store(url) as two:
        await started(one, "s1", owner="a")
        sent = [await one.send_command("s1", "interrupt", {"n": number}) for number in range(5)]
        async with anyio.create_task_group() as tasks:

            async def take(store: Store) -> None:
                taken.extend(command.id for command in await store.take_commands("a"))

            for store in (one, two) * 4:
                tasks.start_soon(take, store)

    assert sorted(taken) == sorted(sent)


async def test_a_command_for_a_missing_session_is_refused(store: Store) -> None:
    with pytest.raises(RookeryError, match="session_not_found"):
        await store.send_command("s1", "end", {})


async def test_what_a_command_said_is_forgotten_with_its_answer_or_its_session(store: Store) -> None:
    await ended(store, "s1", owner="a")
    answered = await store.send_command("s1", "prompt", {"text": "secret"})
    await store.finish_command(answered, {"ok": True})
    waiting = await store.send_command("s1", "prompt", {"text": "secret"})
    await store.delete_session(ALICE, "s1")

    query = "SELECT id, payload FROM commands"
    rows = await store._database.read(lambda connection: connection.exec_driver_sql(query).all())
    assert dict(map(tuple, rows)) == {answered: "{}", waiting: "{}"}


async def test_old_commands_are_swept_when_new_ones_come(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await started(store, "s1", owner="a")
    old = await store.send_command("s1", "interrupt", {})
    await store.finish_command(old, {"ok": True})
    monkeypatch.setattr(processes, "RESULT_KEPT", timedelta(seconds=1))

    await store.heartbeat("nobody")
    await store.send_command("s1", "interrupt", {})

    assert await store.command_result(old) is None
