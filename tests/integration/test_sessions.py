"""Sessions through the whole house: registry, actor, SDK, CLI, bubblewrap, gateway, store."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from server.errors import ErrorCode, RookeryError
from server.models import EventKind, SessionState, StopReason, TurnOrigin
from server.requests import CostRequest, ListRequest
from server.starts import FOR_EACH_PROCESSOR
from tests.house import ME, bash, events, go_on, open_house, run, say, seen, settled, spawn, until

pytestmark = pytest.mark.providers


async def test_a_spawned_agent_works_in_its_sandbox_and_answers(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        outcome = await run(
            registry,
            [
                {"usage": {"input_tokens": 100, "output_tokens": 20}},
                bash("echo made-by-bash > out.txt; cat out.txt"),
                {"usage": {"input_tokens": 150, "output_tokens": 30}},
                {"reply_with": "last_tool_result"},
            ],
            model="claude-sonnet-4-5",
        )
        assert outcome.state is SessionState.IDLE
        assert outcome.stop_reason is StopReason.END_TURN
        assert "made-by-bash" in outcome.text
        assert outcome.changed_files == ("out.txt",)
        assert outcome.error is None
        listing = await registry.list_files(ME, outcome.session_id)
        assert [entry.path for entry in listing.entries] == ["out.txt"]
        assert (await registry.read_file(ME, outcome.session_id, "out.txt")).text == "made-by-bash\n"
        costs = await registry.costs(ME, CostRequest(session_id=outcome.session_id))
        assert (costs.total.input_tokens, costs.total.output_tokens, costs.total.requests) == (250, 50, 2)
        assert costs.total.usd == pytest.approx(250 * 3e-6 + 50 * 15e-6)
        assert outcome.cost == costs.total
        kinds = [event.kind for event in await events(registry, outcome.session_id)]
        assert EventKind.TOOL_CALL in kinds
        assert EventKind.TOOL_RESULT in kinds
        assert kinds[-2:] == [EventKind.TURN_ENDED, EventKind.STATE]


async def test_a_session_remembers_its_conversation_and_keeps_its_files(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        first = await run(registry, [bash("echo kept > file"), {"text": "the word is marmalade"}])
        second = await go_on(registry, first.session_id, [bash("cat file"), {"reply_with": "conversation"}])
        assert second.turn == 2
        assert "the word is marmalade" in second.text
        assert second.changed_files == ()


async def test_what_a_copied_directory_holds_and_a_workspace_cannot_is_named_in_the_log(tmp_path: Path) -> None:
    """F08: a pipe is left out, which the owner of the directory gets to know."""
    source, home = tmp_path / "source", tmp_path / "home"
    source.mkdir()
    home.mkdir()
    home.chmod(0o755)
    (source / "file").write_text("kept")
    os.mkfifo(source / "pipe")
    async with open_house(home, workspace_roots=(source,)) as registry:
        outcome = await run(registry, [{"text": "done"}], workspace={"path": str(source)})
        notices = [event for event in await events(registry, outcome.session_id) if event.kind is EventKind.NOTICE]
        assert ["pipe (fifo)" in event.data["text"] for event in notices] == [True]
        listing = await registry.list_files(ME, outcome.session_id, depth=1)
        assert [entry.path for entry in listing.entries] == ["file"]


@pytest.mark.parametrize("prompt", ["/help me", "-p --dangerous", "@/etc/passwd", "--resume=x", "!ls"])
async def test_p12_a_prompt_is_delivered_as_it_was_written(tmp_path: Path, prompt: str) -> None:
    """Row P12: a prompt is never read as a flag, a slash command or a file."""
    async with open_house(tmp_path) as registry:
        outcome = await run(registry, f"{prompt}\nscenario: " + '[{"reply_with": "prompt"}]')
        assert outcome.text.startswith(prompt)


async def test_a_call_that_the_policy_denies_is_counted_and_the_agent_hears_why(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        outcome = await run(
            registry,
            [
                {"tool": "Write", "input": {"file_path": "/etc/motd", "content": "x"}},
                {"reply_with": "last_tool_result"},
            ],
        )
        assert outcome.stop_reason is StopReason.END_TURN
        assert outcome.denials == 1
        denial = await seen(registry, outcome.session_id, EventKind.DENIAL)
        assert denial.data["tool"] == "Write"
        assert denial.data["because"] in outcome.text


async def test_an_interrupt_stops_a_tool_at_once_and_the_session_goes_on(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        session_id = await spawn(registry, [bash("tail -f /dev/null"), {"text": "never"}])
        await seen(registry, session_id, EventKind.TOOL_CALL)
        with anyio.fail_after(10):
            await registry.interrupt(ME, session_id)
        outcome = await registry.outcome(ME, session_id)
        assert outcome.state is SessionState.IDLE
        assert outcome.stop_reason is StopReason.INTERRUPTED
        assert outcome.error is None
        assert (await go_on(registry, session_id, [{"text": "still here"}])).text == "still here"


async def test_an_interrupt_stops_a_stream(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        session_id = await spawn(registry, [{"text": "word " * 400, "token_delay_s": 0.2}])
        await until(registry, session_id, lambda outcome: outcome.state is SessionState.RUNNING)
        await registry.interrupt(ME, session_id)
        assert (await registry.outcome(ME, session_id)).stop_reason is StopReason.INTERRUPTED


async def test_a_turn_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    async with open_house(tmp_path, turn_timeout_s=2) as registry:
        outcome = await run(registry, [bash("tail -f /dev/null")])
        assert outcome.stop_reason is StopReason.TIMEOUT
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.TIMEOUT
        assert outcome.state is SessionState.IDLE


async def test_a_killed_agent_is_a_typed_error_and_the_session_is_usable_again(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        session_id = await spawn(registry, [bash("echo before > kept; kill -9 $PPID; sleep 60")])
        outcome = await settled(registry, session_id)
        assert outcome.stop_reason is StopReason.ERROR
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.AGENT_CRASHED
        assert outcome.error.retryable
        again = await go_on(registry, session_id, [bash("cat kept"), {"reply_with": "last_tool_result"}])
        assert again.stop_reason is StopReason.END_TURN
        assert "before" in again.text


async def test_a_turn_waits_for_its_background_task_and_the_wake_is_a_turn_of_its_own(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        session_id = await spawn(registry, [bash("sleep 1; echo late", run_in_background=True), {"text": "started"}])
        outcome = await until(registry, session_id, lambda now: now.turn == 2 and not now.state.is_busy)
        assert outcome.stop_reason is StopReason.END_TURN
        started = [event for event in await events(registry, session_id) if event.kind is EventKind.TURN_STARTED]
        assert [event.data["origin"] for event in started] == [TurnOrigin.PROMPT, TurnOrigin.BACKGROUND]


async def test_a_background_task_that_runs_too_long_is_stopped(tmp_path: Path) -> None:
    async with open_house(tmp_path, background_s=1) as registry:
        session_id = await spawn(registry, [bash("sleep 300", run_in_background=True), {"text": "started"}])
        outcome = await settled(registry, session_id)
        assert outcome.stop_reason is StopReason.END_TURN
        assert outcome.text == "started"
        assert any("stopped" in str(event.data.get("text")) for event in await events(registry, session_id))


async def test_an_output_schema_is_met_and_a_schema_not_met_is_an_error(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    async with open_house(tmp_path) as registry:
        met = await run(registry, [{"structured": {"sum": 5}}, {"text": "done"}], output_schema=schema)
        assert met.structured_output == {"sum": 5}
        assert met.error is None
        missed = await run(registry, [{"structured": {"wrong": 1}}] * 12, output_schema=schema)
        assert missed.error is not None
        assert "output_schema" in missed.error.message


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ({"error": 401}, ErrorCode.MODEL_AUTH_FAILED),
        ({"error": 429, "retry_after": 1, "should_retry": False}, ErrorCode.MODEL_RATE_LIMITED),
        ({"error": 500, "should_retry": False}, ErrorCode.MODEL_UNAVAILABLE),
        ({"error": 404}, ErrorCode.INVALID_ARGUMENT),
    ],
)
async def test_a_failing_model_is_a_typed_error_of_the_turn(
    tmp_path: Path, failure: dict[str, object], code: ErrorCode
) -> None:
    async with open_house(tmp_path) as registry:
        outcome = await run(registry, [failure])
        assert outcome.stop_reason is StopReason.ERROR
        assert outcome.error is not None
        assert outcome.error.code is code
        assert outcome.state is SessionState.IDLE


async def test_sessions_survive_a_restart_of_the_server(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        before = await run(registry, [bash("echo survived > file"), {"text": "the word is marmalade"}])
    async with open_house(tmp_path) as registry:
        after = await registry.outcome(ME, before.session_id)
        # The sandbox ran on a little before it was stopped.
        left_out: dict[str, Any] = {"next": True, "cost": {"sandbox_seconds"}}
        assert after.model_dump(exclude=left_out) == before.model_dump(exclude=left_out)
        (listed,) = (await registry.list(ME, ListRequest())).sessions
        assert listed.session_id == before.session_id
        steps = [bash("cat file"), {"reply_with": "conversation"}]
        outcome = await go_on(registry, before.session_id, steps)
        assert "marmalade" in outcome.text
        assert outcome.cost.requests > before.cost.requests


async def test_a_stop_of_the_server_interrupts_what_runs_and_the_turn_can_be_continued(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        session_id = await spawn(registry, [{"text": "thinking of marmalade"}, bash("tail -f /dev/null")])
        await seen(registry, session_id, EventKind.TOOL_CALL)
    async with open_house(tmp_path) as registry:
        outcome = await registry.outcome(ME, session_id)
        assert outcome.state is SessionState.IDLE
        assert outcome.stop_reason is StopReason.INTERRUPTED
        assert "marmalade" in (await go_on(registry, session_id, [{"reply_with": "conversation"}])).text


async def test_an_idle_session_hibernates_and_is_woken_by_its_next_prompt(tmp_path: Path) -> None:
    async with open_house(tmp_path, idle_s=0.2) as registry:
        outcome = await run(registry, [{"text": "the word is marmalade"}])
        with anyio.fail_after(20):
            while (await registry.get(ME, outcome.session_id)).resident:
                await anyio.sleep(0.05)
        assert "marmalade" in (await go_on(registry, outcome.session_id, [{"reply_with": "conversation"}])).text


async def test_the_same_request_gives_the_same_session_and_the_same_turn(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        ids: list[str] = []

        async def race() -> None:
            ids.append(await spawn(registry, [{"text": "once"}], request_id="first"))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(race)
        assert len(set(ids)) == 1
        await settled(registry, ids[0])
        assert await say(registry, ids[0], [{"text": "twice"}], request_id="second") == 2
        await settled(registry, ids[0])
        assert await say(registry, ids[0], [{"text": "thrice"}], request_id="second") == 2
        assert (await registry.outcome(ME, ids[0])).turn == 2


async def test_a_busy_an_ended_and_a_missing_session_say_so(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        session_id = await spawn(registry, [bash("tail -f /dev/null")])
        with pytest.raises(RookeryError) as busy:
            await say(registry, session_id, [{"text": "second"}])
        assert busy.value.code is ErrorCode.SESSION_BUSY
        await registry.end(ME, session_id, delete=False)
        outcome = await registry.outcome(ME, session_id)
        assert outcome.state is SessionState.ENDED
        assert outcome.stop_reason is StopReason.INTERRUPTED
        with pytest.raises(RookeryError) as ended:
            await say(registry, session_id, [{"text": "third"}])
        assert ended.value.code is ErrorCode.SESSION_ENDED
        for principal, name in ((ME, "0b9d1a52-1c1f-4a3c-9a34-7d5f4f0f8a11"), ("somebody-else", session_id)):
            with pytest.raises(RookeryError) as missing:
                await registry.outcome(principal, name)
            assert missing.value.code is ErrorCode.SESSION_NOT_FOUND


async def test_a_deleted_session_leaves_nothing_but_its_costs(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        outcome = await run(registry, [bash("echo secret > file"), {"text": "done"}])
        spent = (await registry.costs(ME, CostRequest())).total
        await registry.end(ME, outcome.session_id, delete=True)
        with pytest.raises(RookeryError):
            await registry.outcome(ME, outcome.session_id)
        kept = (await registry.costs(ME, CostRequest())).total
        # The sandbox was there until the end, so its time has gone on.
        assert kept.sandbox_seconds >= spent.sandbox_seconds
        assert kept.model_copy(update={"sandbox_seconds": spent.sandbox_seconds}) == spent
        assert (await registry.costs(ME, CostRequest(session_id=outcome.session_id))).total == kept
        assert not [path for path in (tmp_path / "sandboxes").rglob("*") if outcome.session_id in str(path)]


async def test_when_all_places_are_at_work_a_spawn_is_refused_and_idle_ones_make_room(tmp_path: Path) -> None:
    async with open_house(tmp_path, max_sessions=1, queue_s=0.1) as registry:
        first = await spawn(registry, [bash("tail -f /dev/null")])
        with pytest.raises(RookeryError) as refused:
            await spawn(registry, [{"text": "second"}])
        assert refused.value.code is ErrorCode.TOO_MANY_SESSIONS
        await registry.interrupt(ME, first)
        assert (await run(registry, [{"text": "third"}])).text == "third"
        assert not (await registry.get(ME, first)).resident


async def test_two_servers_on_one_home_share_sessions_without_disturbing_each_other(tmp_path: Path) -> None:
    async with open_house(tmp_path) as one, open_house(tmp_path) as other:
        mine = await spawn(one, [bash("sleep 1.5"), {"text": "the word is marmalade"}])
        theirs = await run(other, [{"text": "independent"}])
        assert theirs.text == "independent"
        assert (await settled(other, mine)).text == "the word is marmalade"
        turn = await say(other, mine, [{"reply_with": "conversation"}])
        assert turn == 2
        outcome = await settled(one, mine)
        assert "marmalade" in outcome.text
        assert (await one.get(ME, mine)).resident
        await other.end(ME, mine, delete=False)
        assert (await one.outcome(ME, mine)).state is SessionState.ENDED


async def test_a_turn_that_is_interrupted_while_others_start_never_starts_its_agent(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        done = await run(registry, [{"text": "ready"}])
        starts = registry._services.starts
        session = await registry._services.store.session(ME, done.session_id)
        where = registry._services.provider_of(session).capabilities
        async with AsyncExitStack() as others:
            for _ in range(FOR_EACH_PROCESSOR * (os.cpu_count() or 1)):
                await others.enter_async_context(starts.place(where))
            session_id = await spawn(registry, [bash("touch begun"), {"text": "done"}])
            await registry.interrupt(ME, session_id)
        outcome = await settled(registry, session_id)
        assert (outcome.state, outcome.stop_reason) == (SessionState.IDLE, StopReason.INTERRUPTED)
        assert outcome.cost.requests == 0
        assert (await go_on(registry, session_id, [{"text": "on"}])).text == "on"
