"""Turns: one at a time, each prompt once, ended together with the session's state."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from server.errors import ErrorCode, RookeryError
from server.models import EventKind, Failure, SessionState, StopReason, TurnOrigin
from server.store import Store, open_store
from tests.unit.store.records import ALICE, START, a_turn, end_turn, ended, idle, started


async def test_a_prompt_starts_the_next_turn_of_an_idle_session(store: Store) -> None:
    await idle(store, "s1", budget_nano_usd=1)
    before = await store.last_seq("s1")

    turn, is_new = await store.begin_turn(
        "s1", a_turn("s1", prompt="more", number=0), owner="server_1", budget_nano_usd=7
    )

    assert is_new
    assert (turn.number, turn.prompt) == (2, "more")
    assert await store.turn("s1", 2) == turn
    session = await store.session(ALICE, "s1")
    assert (session.state, session.turn, session.owner) == (SessionState.RUNNING, 2, "server_1")
    assert session.budget_nano_usd == 7
    assert [(event.turn, event.kind, event.data) for event in await store.events("s1", after=before)] == [
        (2, EventKind.STATE, {"from": "idle", "to": "running"}),
        (2, EventKind.TURN_STARTED, {"number": 2, "origin": "prompt", "prompt": "more"}),
    ]


async def test_a_turn_that_the_agent_began_by_itself_keeps_budget_and_owner(store: Store) -> None:
    await idle(store, "s1", budget_nano_usd=5, owner="server_1")

    turn, _ = await store.begin_turn("s1", a_turn("s1", origin=TurnOrigin.BACKGROUND, prompt=""))

    session = await store.session(ALICE, "s1")
    assert (session.budget_nano_usd, session.owner) == (5, "server_1")
    assert (await store.turn("s1", 2)).origin is turn.origin is TurnOrigin.BACKGROUND


async def test_a_busy_session_refuses_and_an_ended_one_too(store: Store) -> None:
    await started(store, "busy")
    await ended(store, "over")
    await started(store, "broken")
    await store.move("broken", SessionState.FAILED)

    async def refusal(session_id: str) -> ErrorCode:
        with pytest.raises(RookeryError) as refused:
            await store.begin_turn(session_id, a_turn(session_id))
        return refused.value.code

    assert await refusal("busy") is ErrorCode.SESSION_BUSY
    assert await refusal("over") is ErrorCode.SESSION_ENDED
    assert await refusal("broken") is ErrorCode.SESSION_ENDED
    assert await refusal("missing") is ErrorCode.SESSION_NOT_FOUND


async def test_a_seen_request_returns_its_turn_in_any_state(store: Store) -> None:
    await idle(store, "s1")
    first, _ = await store.begin_turn("s1", a_turn("s1", request_id="r"))

    assert await store.begin_turn("s1", a_turn("s1", request_id="r", prompt="other")) == (first, False)
    await end_turn(store, "s1", 2)
    await store.move("s1", SessionState.ENDED)
    again, is_new = await store.begin_turn("s1", a_turn("s1", request_id="r"))

    assert (again.number, again.stop_reason, is_new) == (2, StopReason.END_TURN, False)
    assert len(await store.turns("s1")) == 2


async def test_many_racing_prompts_start_one_turn(url: str) -> None:
    results: list[tuple[int, bool] | ErrorCode] = []
    async with open_store(url) as one, open_store(url) as two:
        await idle(one, "s1")
        async with anyio.create_task_group() as tasks:

            async def prompt(store: Store, request_id: str) -> None:
                try:
                    turn, is_new = await store.begin_turn("s1", a_turn("s1", request_id=request_id))
                    results.append((turn.number, is_new))
                except RookeryError as error:
                    results.append(error.code)

            for number in range(12):
                tasks.start_soon(prompt, one if number % 2 else two, f"r{number % 3}")

        assert results.count((2, True)) == 1
        assert results.count((2, False)) == 3
        assert results.count(ErrorCode.SESSION_BUSY) == 8
        assert [turn.number for turn in await one.turns("s1")] == [1, 2]


async def test_an_agent_that_lives_in_another_registered_server_is_not_prompted_from_here(store: Store) -> None:
    await store.register_server("other", pid=1)
    await idle(store, "s1", owner="other", resident=True)

    with pytest.raises(RookeryError, match="session_busy: Another"):
        await store.begin_turn("s1", a_turn("s1"), owner="here")

    await store.remove_server("other")
    await store.begin_turn("s1", a_turn("s1"), owner="here")
    assert (await store.session(ALICE, "s1")).owner == "here"


async def test_a_turn_ends_with_its_outcome_its_events_and_the_sessions_state(store: Store) -> None:
    await started(store, "s1")
    await store.move("s1", SessionState.RUNNING, resident=True)
    await store.update_turn("s1", 1, checkpoint_id="c1")
    before = await store.last_seq("s1")
    outcome: dict[str, Any] = {
        "stop_reason": StopReason.ERROR,
        "text": "I stopped.",
        "structured_output": {"n": [1, None]},
        "error": Failure(code=ErrorCode.AGENT_CRASHED, message="gone", retryable=True),
        "denials": 2,
        "changed_files": ("a.py", "b/c.py"),
        "end_checkpoint_id": "c2",
        "sdk_cost_usd": 0.25,
    }
    turn = (await store.turn("s1", 1)).model_copy(update=outcome)

    session = await store.end_turn(turn, to=SessionState.IDLE, resident=False)

    stored = await store.turn("s1", 1)
    assert stored.model_copy(update={"ended_at": None}) == turn
    assert stored.ended_at is not None and stored.ended_at > START
    assert stored.checkpoint_id == "c1"
    assert session == await store.session(ALICE, "s1")
    assert (session.state, session.resident) == (SessionState.IDLE, False)
    assert [(event.kind, event.data) for event in await store.events("s1", after=before)] == [
        (
            EventKind.TURN_ENDED,
            {
                "number": 1,
                "stop_reason": "error",
                "error": {"code": "agent_crashed", "message": "gone", "retryable": True},
                "denials": 2,
                "changed_files": ["a.py", "b/c.py"],
            },
        ),
        (EventKind.STATE, {"from": "running", "to": "idle"}),
    ]


async def test_a_turn_ends_once(store: Store) -> None:
    await started(store, "s1")
    await store.move("s1", SessionState.RUNNING)
    running = await store.turn("s1", 1)
    await store.end_turn(running, to=SessionState.IDLE)
    seq = await store.last_seq("s1")

    with pytest.raises(RookeryError, match="session_busy"):
        await store.end_turn(running, to=SessionState.IDLE)

    # A late end of the first turn must not stop the second one.
    await store.begin_turn("s1", a_turn("s1"))
    with pytest.raises(RookeryError, match="session_busy"):
        await store.end_turn(running, to=SessionState.IDLE)
    assert (await store.session(ALICE, "s1")).state is SessionState.RUNNING
    assert await store.last_seq("s1") == seq + 2


async def test_a_missing_turn_says_not_found(store: Store) -> None:
    await started(store, "s1")

    with pytest.raises(RookeryError, match="session_not_found"):
        await store.turn("s1", 2)
    with pytest.raises(RookeryError, match="session_not_found"):
        await store.update_turn("s1", 2, checkpoint_id="c")
    with pytest.raises(TypeError):
        await store.update_turn("s1", 1, prompt="another")


async def test_words_that_a_database_refuses_do_not_stop_a_turn(store: Store) -> None:
    await started(store, "s1")
    await store.move("s1", SessionState.RUNNING)
    turn = (await store.turn("s1", 1)).model_copy(
        update={"text": "lone \ud800, pair \ud83d\ude00, nul \0", "structured_output": {"\ud800": "\0"}}
    )

    await store.end_turn(turn, to=SessionState.IDLE)

    stored = await store.turn("s1", 1)
    assert stored.text.startswith("lone \ufffd, pair \U0001f600, nul ")
    assert stored.structured_output == {"\ud800": "\0"}
