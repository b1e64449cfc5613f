"""Sessions: created once, seen only by their principal, moved only as allowed, deleted with all that is theirs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import anyio
import pytest

from server.errors import ErrorCode, RookeryError
from server.models import TRANSITIONS, EventKind, SessionRecord, SessionState
from server.requests import CostRequest
from server.store import Store, open_store
from tests.unit.store.records import (
    ALICE,
    BOB,
    START,
    a_checkpoint,
    a_request,
    a_session,
    a_turn,
    an_approval,
    ended,
    idle,
    some_text,
    started,
)


async def test_a_new_session_is_starting_with_its_first_turn_and_both_events(store: Store) -> None:
    asked = a_session(
        "s1",
        title="Größe\nund Zeilen",
        labels={"team": "a", "ticket": "7"},
        tools=("Read", "Bash"),
        output_schema={"type": "object"},
        workspace={"files": {"a.txt": "1"}},
        budget_nano_usd=2**40,
        sandbox={"pid": 1},
        request_id="r1",
    )

    written = await store.create_session(asked, a_turn("s1", prompt="/help me", number=9))

    assert written == asked.model_copy(update={"state": SessionState.STARTING, "turn": 1})
    assert await store.session(ALICE, "s1") == written
    assert await store.turn("s1", 1) == a_turn("s1", prompt="/help me", number=1)
    assert [(event.seq, event.kind, event.turn, event.data) for event in await store.events("s1")] == [
        (1, EventKind.STATE, 1, {"from": None, "to": "starting"}),
        (2, EventKind.TURN_STARTED, 1, {"number": 1, "origin": "prompt", "prompt": "/help me"}),
    ]


async def test_a_seen_request_returns_the_first_session_and_writes_nothing(store: Store) -> None:
    first = await started(store, "s1", request_id="same")

    again = await store.create_session(a_session("s2", request_id="same"), a_turn("s2"))

    assert again == first
    assert await store.session_by_request(ALICE, "same") == first
    with pytest.raises(RookeryError, match="session_not_found"):
        await store.session(ALICE, "s2")


async def test_request_ids_of_two_principals_do_not_meet(store: Store) -> None:
    await started(store, "s1", request_id="same")

    other = await started(store, "s2", request_id="same", principal=BOB)

    assert other.id == "s2"
    assert await store.session_by_request("carol", "same") is None


async def test_many_spawns_with_one_request_id_make_one_session(url: str) -> None:
    answers: set[str] = set()
    async with open_store(url) as one, open_store(url) as two, anyio.create_task_group() as tasks:

        async def spawn(store: Store, number: int) -> None:
            session_id = f"s{number}"
            answers.add((await store.create_session(a_session(session_id, request_id="r"), a_turn(session_id))).id)

        for number in range(12):
            tasks.start_soon(spawn, one if number % 2 else two, number)

    assert len(answers) == 1


async def test_a_foreign_session_reads_exactly_as_a_missing_one(store: Store) -> None:
    await started(store, "s1")

    with pytest.raises(RookeryError) as foreign:
        await store.session(BOB, "s1")
    with pytest.raises(RookeryError) as missing:
        await store.session(BOB, "s2")

    assert foreign.value.code is ErrorCode.SESSION_NOT_FOUND
    assert str(foreign.value) == str(missing.value)
    assert (await store.session_for_server("s1")).principal == ALICE


@pytest.mark.parametrize("here", list(SessionState))
@pytest.mark.parametrize("to", list(SessionState))
async def test_a_session_moves_only_as_the_table_allows(store: Store, here: SessionState, to: SessionState) -> None:
    await in_state(store, "s1", here)
    before = await store.last_seq("s1")

    if to in TRANSITIONS[here]:
        moved = await store.move("s1", to, data={"why": "test"})

        assert moved == await store.session(ALICE, "s1")
        assert moved.state is to
        last = (await store.events("s1", after=before))[0]
        assert (last.kind, last.data) == (EventKind.STATE, {"from": here, "to": to, "why": "test"})
        assert (moved.ended_at is not None) == to.is_terminal
    else:
        with pytest.raises(RookeryError) as refused:
            await store.move("s1", to)

        expected = ErrorCode.SESSION_ENDED if here.is_terminal else ErrorCode.SESSION_BUSY
        assert refused.value.code is expected
        assert (await store.session(ALICE, "s1")).state is here
        assert await store.last_seq("s1") == before


async def test_a_move_sets_fields_and_the_time_in_the_same_step(store: Store) -> None:
    await started(store, "s1")

    moved = await store.move("s1", SessionState.RUNNING, owner="server_1", resident=True, sandbox={"ref": 1})

    assert (moved.owner, moved.resident, moved.sandbox) == ("server_1", True, {"ref": 1})
    assert moved.updated_at > START
    assert await store.session(ALICE, "s1") == moved


async def test_a_move_from_an_unexpected_state_is_refused(store: Store) -> None:
    await idle(store, "s1")

    with pytest.raises(RookeryError, match="session_busy"):
        await store.move("s1", SessionState.ENDED, expect=[SessionState.RUNNING])

    assert (await store.session(ALICE, "s1")).state is SessionState.IDLE


async def test_moving_a_missing_session_says_not_found(store: Store) -> None:
    with pytest.raises(RookeryError, match="session_not_found"):
        await store.move("s1", SessionState.ENDED)


async def test_who_a_session_is_cannot_be_changed(store: Store) -> None:
    await started(store, "s1")

    fixed: list[dict[str, Any]] = [{"principal": BOB}, {"id": "s2"}, {"turn": 7}, {"state": "idle"}]
    for fields in fixed:
        with pytest.raises(TypeError):
            await store.update_session("s1", **fields)
        with pytest.raises(TypeError):
            await store.move("s1", SessionState.RUNNING, **fields)

    assert (await store.session(ALICE, "s1")).state is SessionState.STARTING


async def test_of_many_racing_moves_one_wins(url: str) -> None:
    won: list[str] = []
    lost: list[ErrorCode] = []
    async with open_store(url) as one, open_store(url) as two:
        await idle(one, "s1")
        async with anyio.create_task_group() as tasks:

            async def race(store: Store, owner: str) -> None:
                try:
                    await store.move("s1", SessionState.RUNNING, expect=[SessionState.IDLE], owner=owner)
                    won.append(owner)
                except RookeryError as error:
                    lost.append(error.code)

            for number in range(10):
                tasks.start_soon(race, one if number % 2 else two, f"server_{number}")

        assert len(won) == 1
        assert set(lost) == {ErrorCode.SESSION_BUSY}
        assert (await one.session(ALICE, "s1")).owner == won[0]
        moves = await one.events("s1", kinds=[EventKind.STATE])
        assert [event.data["to"] for event in moves] == ["starting", "running", "idle", "running"]


async def test_a_lease_is_claimed_by_one(url: str) -> None:
    async with open_store(url) as one, open_store(url) as two:
        await started(one, "s1", owner="dead")
        claims: list[bool] = []
        async with anyio.create_task_group() as tasks:

            async def claim(store: Store, owner: str) -> None:
                claims.append(await store.claim("s1", owner, expect_owner="dead"))

            tasks.start_soon(claim, one, "server_1")
            tasks.start_soon(claim, two, "server_2")

        assert sorted(claims) == [False, True]
        owner = (await one.session(ALICE, "s1")).owner
        assert await one.claim("s1", None, expect_owner=owner)
        assert await two.claim("s1", "server_3", expect_owner=None)
        assert [session.id for session in await two.owned_sessions("server_3")] == ["s1"]


async def test_work_without_a_living_owner_is_found(store: Store) -> None:
    await store.register_server("alive", pid=1)
    await store.register_server("dying", pid=2)
    await started(store, "kept", owner="alive")
    await started(store, "orphan", owner="dying")
    await started(store, "struck-off", owner="long gone")
    await started(store, "nobodys")
    await idle(store, "resting", owner="dying")
    await idle(store, "resident", owner="dying", resident=True)
    await ended(store, "over", owner="dying")

    found = {session.id for session in await store.unowned_work(["dying"])}

    assert found == {"orphan", "struck-off", "nobodys", "resident", "resting"}


async def test_sessions_are_found_by_state(store: Store) -> None:
    await started(store, "s1")
    await idle(store, "s2", principal=BOB)
    await ended(store, "s3")

    async def found(*states: SessionState, principal: str | None = None) -> list[str]:
        return [session.id for session in await store.sessions_in(states, principal=principal)]

    assert await found(SessionState.STARTING, SessionState.IDLE) == ["s1", "s2"]
    assert await found(SessionState.STARTING, SessionState.IDLE, principal=BOB) == ["s2"]
    assert await found(SessionState.RUNNING) == []


async def test_retention_finds_what_ended_before_a_time(store: Store) -> None:
    await idle(store, "idle")
    over = await ended(store, "ended")
    await started(store, "failed")
    failed = await store.move("failed", SessionState.FAILED)
    assert over.ended_at is not None and failed.ended_at is not None

    assert [session.id for session in await store.ended_before(over.ended_at)] == []
    assert [session.id for session in await store.ended_before(failed.ended_at)] == ["ended"]
    assert [session.id for session in await store.ended_before(START + timedelta(days=1))] == ["ended", "failed"]


async def test_deleting_removes_all_of_a_session_but_what_it_cost(store: Store) -> None:
    await ended(store, "s1", labels={"team": "a"})
    await started(store, "s2")
    await store.append_events("s1", 1, some_text(3))
    await store.transcript_store("s1").append({"project_key": "-workspace", "session_id": "s1"}, [{"type": "user"}])
    await store.record_request(a_request("q1", "s1"))
    await store.add_approval(an_approval("a1", "s1"))
    await store.add_checkpoint(a_checkpoint("c1", "s1"))
    command = await store.send_command("s1", "end", {"secret": "words"})

    await store.delete_session(ALICE, "s1")

    with pytest.raises(RookeryError, match="session_not_found"):
        await store.session(ALICE, "s1")
    assert await store.events("s1") == []
    assert await store.turns("s1") == []
    assert await store.transcript_prefix("s1") == []
    assert await store.approvals(ALICE, pending=False) == []
    assert await store.checkpoints("s1") == []
    assert (await store.cost("s1")).requests == 1
    assert (await store.cost_report(ALICE, CostRequest())).total.requests == 1
    assert (await store.cost_report(ALICE, CostRequest(session_id="s1"))).total.usd == pytest.approx(0.0015)
    with pytest.raises(RookeryError, match="session_not_found"):
        await store.cost_report(BOB, CostRequest(session_id="s1"))
    await store.finish_command(command, {"deleted": True})
    assert await store.command_result(command) == {"deleted": True}
    assert (await store.session(ALICE, "s2")).id == "s2"


async def test_a_session_that_lives_or_is_foreign_is_not_deleted(store: Store) -> None:
    await idle(store, "s1")
    await ended(store, "s2")

    with pytest.raises(RookeryError, match="session_busy"):
        await store.delete_session(ALICE, "s1")
    with pytest.raises(RookeryError, match="session_not_found"):
        await store.delete_session(BOB, "s2")

    assert (await store.session(ALICE, "s2")).state is SessionState.ENDED


async def test_listeners_hear_of_every_change_and_cannot_break_it(store: Store) -> None:
    heard: list[str] = []

    def broken(session_id: str) -> None:
        raise RuntimeError(session_id)

    store.listeners += [broken, heard.append]
    await started(store, "s1")
    await store.append_events("s1", 1, some_text(1))
    await store.append_events("s1", 1, [])
    await store.move("s1", SessionState.RUNNING)
    await store.record_request(a_request("q1", "s1"))
    await store.record_request(a_request("q1", "s1"))

    assert heard == ["s1"] * 4


async def in_state(store: Store, session_id: str, state: SessionState) -> SessionRecord:
    """A session brought to a state by allowed moves."""
    session = await started(store, session_id)
    if state in (SessionState.STARTING, SessionState.IDLE, SessionState.ENDED, SessionState.FAILED):
        return session if state is SessionState.STARTING else await store.move(session_id, state)
    session = await store.move(session_id, SessionState.RUNNING)
    return session if state is SessionState.RUNNING else await store.move(session_id, state)
