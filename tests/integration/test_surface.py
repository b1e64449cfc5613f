"""The MCP surface over the real house, in both protocol eras."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, BlobResourceContents, TextContent, TextResourceContents

from server.gateway.scripted import prompt_with
from server.registry import Registry
from tests.house import ME, bash, open_house
from tests.surface import ERAS, Era, ProgressLog, answer_of, connected, error_of, text_of
from tools import waiting

HOLD = bash("until [ -e go ]; do sleep 0.05; done; echo released")
"""A step that lasts until the test lets it go."""

WORKING = ("starting", "running")


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> Era:
    return cast(Era, request.param)


@asynccontextmanager
async def served(home: Path, era: Era = "auto") -> AsyncIterator[tuple[Client, Registry]]:
    """A client of a server over a whole house."""
    async with open_house(home) as registry, connected(registry, era) as client:
        yield client, registry


def release(home: Path, session_id: str) -> None:
    (home / "sandboxes" / session_id / "workspace" / "go").touch()


async def spawn(client: Client, *steps: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return answer_of(await client.call_tool("spawn_agent", {"prompt": prompt_with(list(steps)), **arguments}))


async def test_the_loop_that_the_instructions_teach(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        assert "spawn → wait → continue" in (client.instructions or "")
        progress = ProgressLog()
        result = await client.call_tool(
            "spawn_agent",
            {"prompt": prompt_with([HOLD, {"text": "the work is done"}]), "wait_s": 0.5, "title": "held"},
            progress_callback=progress,
        )
        started = answer_of(result)
        assert started["state"] in WORKING
        assert "wait_for_sessions" in started["next"]
        assert started["session_id"] in text_of(result)
        assert progress.numbers, "progress comes at once"

        release(tmp_path, started["session_id"])
        result = await client.call_tool(
            "wait_for_sessions", {"session_ids": [started["session_id"]]}, progress_callback=progress
        )
        waited = answer_of(result)
        (outcome,) = waited["outcomes"]
        assert waited["working"] == []
        assert (outcome["state"], outcome["stop_reason"], outcome["text"]) == ("idle", "end_turn", "the work is done")
        assert "the work is done" in text_of(result)
        assert "continue_session" in waited["next"]

        result = await client.call_tool(
            "continue_session",
            {"session_id": started["session_id"], "prompt": prompt_with([{"reply_with": "conversation"}])},
        )
        continued = answer_of(result)
        assert continued["turn"] == 2
        assert "the work is done" in continued["text"]
        # Each call counts its own progress; within one it only ever grows.
        assert (
            answer_of(await client.call_tool("end_session", {"session_id": started["session_id"]}))["state"] == "ended"
        )


async def test_progress_comes_at_once_and_then_steadily_with_growing_numbers(
    tmp_path: Path, era: Era, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, era) as (client, _):
        monkeypatch.setattr(waiting, "HEARTBEAT_S", 0.2)
        session_id = (await spawn(client, HOLD, wait_s=0))["session_id"]
        progress = ProgressLog()
        with anyio.fail_after(30):
            await client.call_tool(
                "wait_for_sessions", {"session_ids": [session_id], "wait_s": 2}, progress_callback=progress
            )
        assert len(progress.numbers) >= 5
        assert progress.numbers == sorted(set(progress.numbers)), "strictly increasing"
        assert len(set(progress.texts)) == len(progress.texts), "the text changes"
        release(tmp_path, session_id)


async def test_the_promised_pause_between_reports_is_below_five_seconds() -> None:
    assert waiting.HEARTBEAT_S < 5


async def test_waiting_for_any_returns_with_the_first(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        held = (await spawn(client, HOLD, wait_s=0))["session_id"]
        quick = (await spawn(client, {"text": "quick"}, wait_s=0))["session_id"]
        with anyio.fail_after(30):
            waited = answer_of(
                await client.call_tool("wait_for_sessions", {"session_ids": [held, quick], "until": "any"})
            )
        assert waited["working"] == [held]
        assert [one["session_id"] for one in waited["outcomes"]] == [held, quick]
        assert held in waited["next"]
        release(tmp_path, held)
        waited = answer_of(await client.call_tool("wait_for_sessions", {"session_ids": [held, quick]}))
        assert waited["working"] == []


async def test_p03_a_caller_that_gives_up_stops_waiting_and_the_agent_works_on(tmp_path: Path, era: Era) -> None:
    """P03, P04: cancelling a call ends the waiting, not the work."""
    async with served(tmp_path, era) as (client, house):
        session_id = (await spawn(client, HOLD, {"text": "finished all the same"}, wait_s=0))["session_id"]
        waiting_now = anyio.Event()

        async def told(progress: float, total: float | None, message: str | None) -> None:
            waiting_now.set()

        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                await client.call_tool("wait_for_sessions", {"session_ids": [session_id]}, progress_callback=told)

            tasks.start_soon(wait)
            with anyio.fail_after(30):
                await waiting_now.wait()
            tasks.cancel_scope.cancel()
        assert (await house.outcome(ME, session_id)).state.is_busy
        release(tmp_path, session_id)
        waited = answer_of(await client.call_tool("wait_for_sessions", {"session_ids": [session_id]}))
        assert waited["outcomes"][0]["text"] == "finished all the same"


async def test_a_wait_beyond_the_servers_longest_is_cut_and_says_so(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, connected(house, max_wait_s=0.3) as client:
        outcome = await spawn(client, HOLD, wait_s=3600)
        assert outcome["state"] in WORKING
        assert outcome["next"].startswith("This server waits at most 0.3 s in one call.")
        release(tmp_path, outcome["session_id"])


async def test_a_repeated_spawn_with_a_request_id_gives_the_first_session(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        first = await spawn(client, {"text": "one"}, request_id="my-key")
        second = await spawn(client, {"text": "two"}, request_id="my-key")
        assert second["session_id"] == first["session_id"]
        assert second["text"] == "one"


async def test_a_repeated_call_answers_with_its_own_turn_also_when_others_have_followed(
    tmp_path: Path, era: Era
) -> None:
    async with served(tmp_path, era) as (client, _):
        first = await spawn(client, {"text": "one"}, request_id="first")
        calls = [
            {"session_id": first["session_id"], "prompt": prompt_with([{"text": text}]), "request_id": text}
            for text in ("two", "three")
        ]
        for call in calls:
            assert answer_of(await client.call_tool("continue_session", call))["text"] == call["request_id"]
        repeated = answer_of(await client.call_tool("continue_session", calls[0]))
        assert (repeated["turn"], repeated["text"]) == (2, "two")
        again = await spawn(client, {"text": "one"}, request_id="first")
        assert (again["session_id"], again["turn"], again["text"]) == (first["session_id"], 1, "one")
        # Nobody needs to wait for the turn that runs now to hear of one that is over.
        held = {"session_id": first["session_id"], "prompt": prompt_with([HOLD]), "wait_s": 0}
        await client.call_tool("continue_session", held)
        with anyio.fail_after(20):
            assert answer_of(await client.call_tool("continue_session", calls[1]))["text"] == "three"


async def test_a_busy_session_refuses_a_second_prompt_and_an_interrupt_stops_it(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        session_id = (await spawn(client, HOLD, wait_s=0))["session_id"]
        error = error_of(await client.call_tool("continue_session", {"session_id": session_id, "prompt": "more"}))
        assert (error["code"], error["retryable"]) == ("session_busy", True)
        outcome = answer_of(await client.call_tool("interrupt_session", {"session_id": session_id}))
        assert (outcome["state"], outcome["stop_reason"]) == ("idle", "interrupted")


async def test_the_work_and_its_cost_can_be_seen(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        spawned = await spawn(
            client,
            bash("mkdir -p src; printf 'print(1)\\n' > src/main.py; printf '\\377\\376' > binary"),
            {"text": "made"},
            title="Files",
            labels={"team": "red"},
        )
        session_id = spawned["session_id"]
        assert sorted(spawned["changed_files"]) == ["binary", "src/main.py"]

        listing = answer_of(await client.call_tool("list_files", {"session_id": session_id, "depth": 3}))
        assert {entry["path"] for entry in listing["entries"]} == {"binary", "src", "src/main.py"}
        result = await client.call_tool("read_file", {"session_id": session_id, "path": "src/main.py"})
        assert answer_of(result)["text"] == text_of(result) == "print(1)\n"
        part = await client.call_tool("read_file", {"session_id": session_id, "path": "src/main.py", "limit": 5})
        assert (answer_of(part)["text"], answer_of(part)["next_offset"]) == ("print", 5)
        binary = answer_of(await client.call_tool("read_file", {"session_id": session_id, "path": "binary"}))
        assert base64.b64decode(binary["base64"]) == b"\xff\xfe"

        costs = answer_of(await client.call_tool("get_costs", {"session_id": session_id, "group_by": "model"}))
        assert costs["total"]["requests"] == spawned["cost"]["requests"] == 2
        assert costs["groups"]

        view = answer_of(await client.call_tool("get_session", {"session_id": session_id}))
        assert (view["title"], view["labels"]) == ("Files", {"team": "red"})
        assert view["outcome"]["text"] == "made"
        page = answer_of(await client.call_tool("list_sessions", {"labels": {"team": "red"}, "state": "idle"}))
        assert [one["session_id"] for one in page["sessions"]] == [session_id]
        assert answer_of(await client.call_tool("list_sessions", {"labels": {"team": "blue"}}))["sessions"] == []


async def test_the_transcript_is_read_in_pages_that_leave_nothing_out(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        session_id = (await spawn(client, bash("echo one"), bash("echo two"), {"text": "end"}))["session_id"]
        seen: list[int] = []
        after, more = 0, True
        while more:
            page = answer_of(
                await client.call_tool("read_transcript", {"session_id": session_id, "after": after, "limit": 3})
            )
            seen += [event["seq"] for event in page["events"]]
            after, more = page["cursor"], page["more"]
        assert seen == list(range(1, len(seen) + 1))
        assert len(seen) > 6
        again = answer_of(await client.call_tool("read_transcript", {"session_id": session_id, "after": after}))
        assert again["events"] == []


async def test_transcript_and_files_are_resources_too(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        session_id = (await spawn(client, bash("mkdir d; echo deep > d/x.txt"), {"text": "end"}))["session_id"]
        (transcript,) = (await client.read_resource(f"rookery://sessions/{session_id}/transcript")).contents
        assert isinstance(transcript, TextResourceContents)
        events = [json.loads(line) for line in transcript.text.splitlines()]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        after = len(events) - 2
        (rest,) = (await client.read_resource(f"rookery://sessions/{session_id}/transcript?after={after}")).contents
        assert isinstance(rest, TextResourceContents)
        assert len(rest.text.splitlines()) == 2
        (file,) = (await client.read_resource(f"rookery://sessions/{session_id}/files/d/x.txt")).contents
        assert isinstance(file, BlobResourceContents)
        assert base64.b64decode(file.blob) == b"deep\n"
        for path in ("missing", "../../../rookery.db", "%2e%2e/config"):
            with pytest.raises(MCPError):
                await client.read_resource(f"rookery://sessions/{session_id}/files/{path}")


async def test_p07_the_sessions_of_another_principal_read_as_missing(tmp_path: Path, era: Era) -> None:
    """P07: the answer for a foreign id is word for word that for an id that never was."""
    async with (
        open_house(tmp_path) as house,
        connected(house, era) as mine,
        connected(house, era, principal="someone-else") as foreign,
    ):
        session_id = (await spawn(mine, {"text": "private"}))["session_id"]
        calls: dict[str, dict[str, Any]] = {
            "continue_session": {"prompt": "x"},
            "get_session": {},
            "read_transcript": {},
            "interrupt_session": {},
            "end_session": {"delete": True},
            "get_costs": {},
            "list_files": {},
            "read_file": {"path": "x"},
        }
        for tool, more in calls.items():
            answers = [
                error_of(await foreign.call_tool(tool, {"session_id": asked, **more}))
                for asked in (session_id, "00000000-0000-4000-8000-000000000000")
            ]
            assert answers[0] == answers[1]
            assert answers[0]["code"] == "session_not_found"
        waited = await foreign.call_tool("wait_for_sessions", {"session_ids": [session_id]})
        assert error_of(waited)["code"] == "session_not_found"
        assert answer_of(await foreign.call_tool("list_sessions", {}))["sessions"] == []
        for path in ("transcript", "files/x"):
            with pytest.raises(MCPError, match="session_not_found"):
                await foreign.read_resource(f"rookery://sessions/{session_id}/{path}")


async def test_a_failed_turn_is_an_outcome_with_its_error(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        result = await client.call_tool("spawn_agent", {"prompt": prompt_with([{"error": 401}])})
        outcome = answer_of(result)
        assert outcome["error"]["code"] == "model_auth_failed"
        assert outcome["stop_reason"] == "error"
        assert "model_auth_failed" in text_of(result)


@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("spawn_agent", {"prompt": ""}, "invalid_argument"),
        ("spawn_agent", {"prompt": "x", "policy": "no-such-policy"}, "invalid_argument"),
        ("get_session", {"session_id": "never-was"}, "session_not_found"),
        ("no_such_tool", {}, "invalid_argument"),
    ],
)
async def test_a_failed_call_says_code_message_and_whether_to_retry(
    tmp_path: Path, era: Era, tool: str, arguments: dict[str, Any], code: str
) -> None:
    async with served(tmp_path, era) as (client, _):
        error = error_of(await client.call_tool(tool, arguments))
        assert (error["code"], error["retryable"]) == (code, False)


async def test_what_rookery_did_not_foresee_is_internal_and_tells_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(tmp_path) as house:

        async def broken(*_: Any, **__: Any) -> None:
            raise ValueError("/root/secret sk-ant-xyz")

        monkeypatch.setattr(house, "costs", broken)
        async with connected(house) as client:
            result = await client.call_tool("get_costs", {})
            assert error_of(result)["code"] == "internal"
            assert "secret" not in text_of(result)


async def test_what_is_wrong_with_a_call_of_a_prompt_is_told_to_its_caller(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        for name, arguments, told in (
            ("delegate", {}, "`task` is missing"),
            ("delegate", {"task": "x", "tasks": "y"}, "no other arguments than task"),
            ("nonsense", {}, "no such prompt"),
        ):
            with pytest.raises(MCPError, match=told) as refused:
                await client.get_prompt(name, arguments)
            assert refused.value.error.code == INVALID_PARAMS
            assert refused.value.error.message.startswith("invalid_argument: ")


async def test_a_cursor_in_an_address_that_is_none_is_told_as_such(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        session_id = (await spawn(client, {"text": "x"}))["session_id"]
        for cursor in ("abc", "-1", "9" * 30, "1.5"):
            with pytest.raises(MCPError, match="after: the cursor") as refused:
                await client.read_resource(f"rookery://sessions/{session_id}/transcript?after={cursor}")
            assert refused.value.error.code == INVALID_PARAMS


async def test_prompts_help_a_person_delegate(tmp_path: Path, era: Era) -> None:
    async with served(tmp_path, era) as (client, _):
        assert {prompt.name for prompt in (await client.list_prompts()).prompts} == {"delegate", "parallel", "review"}
        for name in ("delegate", "parallel"):
            (message,) = (await client.get_prompt(name, {"task": "count the rooks"})).messages
            assert isinstance(message.content, TextContent)
            assert "count the rooks" in message.content.text
            assert "spawn_agent" in message.content.text
