"""What answers tell a client to call next: only what it can call, whatever of the tools it is offered."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult, TextResourceContents

from server.callers import Caller, Scope
from server.gateway.scripted import prompt_with
from server.models import EventKind
from server.registry import Registry
from tests.daemons import connecting, daemon_home
from tests.house import ME, bash, open_house, run, seen, spawn, until
from tests.http import call, serving_http
from tests.integration.test_approvals import STEPS, asked, policy_dir
from tests.surface import ReadyBackend, answer_of, error_of, text_of
from tests.tenants import token
from tools.server import build_server
from tools.toolsets import TOOLSETS, tools_of

EVERY: Final = {tool.name for tools in TOOLSETS.values() for tool in tools}
HOLD: Final = bash("echo held; until [ -e go ]; do sleep 0.05; done")
MISSING: Final = "00000000-0000-4000-8000-000000000000"
READER: Final = Caller(ME, frozenset({Scope.READ}))
RUNNER: Final = Caller(ME, frozenset({Scope.READ, Scope.RUN}))


def named(text: str) -> set[str]:
    """The tools that a text names."""
    return {name for name in EVERY if re.search(rf"\b{name}\b", text)}


def hints(answer: Any) -> Iterator[str]:
    """What a structured answer, at any depth, says of what to do: ``next``, and the messages of errors."""
    if isinstance(answer, Mapping):
        for key, part in answer.items():
            if key in ("next", "message") and isinstance(part, str):
                yield part
            else:
                yield from hints(part)
    elif isinstance(answer, list):
        for part in answer:
            yield from hints(part)


@asynccontextmanager
async def client_of(
    registry: Registry, *toolsets: str, read_only: bool = False, caller: Caller | None = None
) -> AsyncIterator[Client]:
    tools = tools_of(toolsets or ("all",), read_only=read_only)
    server = build_server(ReadyBackend(registry), caller=caller or Caller(ME), tools=tools, read_only=read_only)
    async with Client(server) as client:
        yield client


def callable_tools(toolsets: Iterable[str], read_only: bool, caller: Caller | None) -> set[str]:
    return {tool.name for tool in tools_of(toolsets, read_only=read_only) if (caller or Caller(ME)).may(tool.needs)}


async def probe(client: Client, tools: set[str], sessions: Mapping[str, str]) -> list[CallToolResult]:
    """The answers of all tools that can be called without starting or ending anything, about each session."""
    given: list[tuple[str, dict[str, Any]]] = [("list_approvals", {}), ("nonsense", {})]
    for state, session_id in {**sessions, "missing": MISSING}.items():
        given += [
            ("get_session", {"session_id": session_id}),
            ("read_file", {"session_id": session_id, "path": "nowhere"}),
            ("rewind_files", {"session_id": session_id, "checkpoint_id": MISSING}),
            ("list_approvals", {"session_id": session_id}),
        ]
        if state != "asking":
            given += [
                ("wait_for_sessions", {"session_ids": [session_id], "wait_s": 0}),
                ("reply", {"session_id": session_id, "wait_s": 0}),
                ("reply", {"session_id": session_id, "decision": "allow", "wait_s": 0}),
            ]
        if state not in ("idle", "spent"):
            given += [
                ("continue_session", {"session_id": session_id, "prompt": "x", "wait_s": 0}),
                ("reply", {"session_id": session_id, "prompt": "x", "wait_s": 0}),
            ]
    given.append(("wait_for_sessions", {"session_ids": list(sessions.values()), "wait_s": 0}))
    return [await client.call_tool(name, arguments) for name, arguments in given if name in tools | {"nonsense"}]


OFFERS: Final[dict[str, tuple[tuple[str, ...], bool, Caller | None]]] = {
    "everything": (("all",), False, None),
    "simple": (("simple",), False, None),
    "simple and files": (("simple", "files"), False, None),
    "simple, may not approve": (("simple", "sessions"), False, RUNNER),
    "sessions": (("sessions",), False, None),
    "undo and approvals": (("undo", "approvals"), False, None),
    "files and costs": (("files", "costs"), False, None),
    "read-only": (("all",), True, None),
    "a reader's token": (("all",), False, READER),
    "a runner's token": (("all",), False, RUNNER),
}


async def test_answers_name_no_tool_that_the_client_cannot_call(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry:
        sessions = {
            "idle": (await run(registry, [{"text": "done"}])).session_id,
            "spent": (await run(registry, [{"text": "done"}], budget_usd=0.000001)).session_id,
            "ended": (await run(registry, [{"text": "done"}])).session_id,
            "running": await spawn(registry, [HOLD]),
            "asking": await spawn(registry, STEPS, policy="asking"),
        }
        await registry.end(ME, sessions["ended"], delete=False)
        await until(registry, sessions["asking"], asked)
        await seen(registry, sessions["running"], EventKind.TOOL_CALL)
        told: dict[str, set[str]] = {}
        for offer, (toolsets, read_only, caller) in OFFERS.items():
            tools = callable_tools(toolsets, read_only, caller)
            async with client_of(registry, *toolsets, read_only=read_only, caller=caller) as client:
                answers = await probe(client, tools, sessions)
            said = [hint for answer in answers for hint in hints(answer.structured_content)]
            told[offer] = set().union(*(named(hint) for hint in said))
            assert told[offer] <= tools, [hint for hint in said if not named(hint) <= tools]
            shown = [line for answer in answers for line in text_of(answer).splitlines()]
            assert set().union(*(named(line) for line in shown if line.startswith(("Next:", "Error:")))) <= tools
            assert all(hint.strip() == hint and "  " not in hint for hint in said)
        # The hints are there, and not just empty.
        assert {"wait_for_sessions", "continue_session", "answer_approval", "fork_session"} <= told["everything"]
        assert told["simple"] == {"run_agent", "reply"}
        assert {"wait_for_sessions", "list_approvals", "read_transcript", "list_files"} <= told["read-only"]
        assert "continue_session" in told["a runner's token"]


async def test_a_client_of_the_simple_toolset_is_led_from_start_to_end(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path), policy="asking") as registry:
        async with client_of(registry, "simple") as client:
            started = answer_of(
                await client.call_tool("run_agent", {"prompt": prompt_with([HOLD, *STEPS]), "wait_s": 0})
            )
            given = f'session_id="{started["session_id"]}"'
            assert started["next"] == f"The agent is at work. Call reply({given}) again."
            prompt = {"session_id": started["session_id"], "prompt": prompt_with([{"text": "more"}])}
            busy = error_of(await client.call_tool("reply", prompt))
            assert busy["code"] == "session_busy"
            assert "Wait for it with reply" in busy["message"]

            (tmp_path / "home" / "sandboxes" / started["session_id"] / "workspace" / "go").touch()
            asks = answer_of(await client.call_tool("reply", {"session_id": started["session_id"]}))
            assert asks["next"] == f'The agent asks for permission. Call reply({given}, decision="allow") or "deny".'
            decided = {"session_id": started["session_id"], "decision": "allow"}
            idle = answer_of(await client.call_tool("reply", decided))
            assert idle["next"] == f"Call reply({given}, prompt=…) to go on."
            assert answer_of(await client.call_tool("reply", prompt))["text"] == "more"
        await registry.end(ME, started["session_id"], delete=False)
        async with client_of(registry, "simple") as client:
            ended = answer_of(await client.call_tool("reply", {"session_id": started["session_id"]}))
            assert ended["next"] == "The session has ended. Call run_agent for a new one."


async def test_a_remedy_that_takes_an_argument_is_told_only_with_a_tool_that_takes_it(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        spent = await run(registry, [{"text": "done"}], budget_usd=0.000001)
        look = {"session_id": spent.session_id}
        async with client_of(registry) as client:
            full = answer_of(await client.call_tool("get_session", look))["outcome"]["error"]
        async with client_of(registry, "simple") as client:
            simple = answer_of(await client.call_tool("reply", look))["error"]
    assert full["code"] == simple["code"] == "budget_exceeded"
    assert "continue_session with a higher budget_usd" in full["message"]
    assert not named(simple["message"])
    assert (
        full["message"].replace(": continue_session with a higher budget_usd (the new total) goes on", "")
        == (simple["message"])
    )


async def test_the_resource_of_a_session_says_what_its_reader_can_call(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        idle = await run(registry, [{"text": "done"}])
        for read_only, expected in ((False, "continue_session"), (True, "read_transcript")):
            async with client_of(registry, read_only=read_only) as client:
                (content,) = (await client.read_resource(f"rookery://sessions/{idle.session_id}")).contents
            assert isinstance(content, TextResourceContents)
            assert expected in json.loads(content.text)["outcome"]["next"]
            assert ("continue_session" in content.text) is not read_only


async def test_who_may_not_approve_does_not_do_so_by_a_reply(tmp_path: Path) -> None:
    """The simple tool needs the scope that the tool of the approvals needs."""
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        await until(registry, session_id, asked)
        decided = {"session_id": session_id, "decision": "allow"}
        async with client_of(registry, "simple", caller=RUNNER) as client:
            waits = answer_of(await client.call_tool("reply", {"session_id": session_id, "wait_s": 0}))
            assert waits["next"] == "The agent asks for permission, which somebody else must give."
            assert error_of(await client.call_tool("reply", decided))["code"] == "policy_denied"
        assert asked(await registry.outcome(ME, session_id))
        async with client_of(registry, "simple") as client:
            assert answer_of(await client.call_tool("reply", decided))["changed_files"] == ["made"]


def test_tokens_of_one_tenant_are_told_what_each_may(tmp_path: Path) -> None:
    _, full = anyio.run(token, tmp_path, "full")
    _, reader = anyio.run(token_of_a_reader, tmp_path)
    with serving_http(tmp_path, ROOKERY_AUTH="true") as site:
        idle = call(site, "spawn_agent", {"prompt": prompt_with([{"text": "done"}])}, **full)
        look = {"session_id": idle["session_id"]}
        assert "continue_session" in idle["next"]
        assert "continue_session" in call(site, "get_session", look, **full)["outcome"]["next"]
        seen_by_reader = call(site, "get_session", look, **reader)["outcome"]["next"]
        assert named(seen_by_reader) == {"read_transcript", "list_files", "get_costs"}


async def token_of_a_reader(home: Path) -> tuple[Any, dict[str, str]]:
    return await token(home, "reader", {Scope.READ}, principal="full")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with daemon_home(tmp_path) as place:
        yield place


def test_clients_of_one_daemon_are_told_of_the_tools_that_each_asked_for(home: Path) -> None:
    with connecting(home) as full, connecting(home, ROOKERY_TOOLSETS="simple") as simple:
        full.initialize()
        simple.initialize()
        first = full.call(1, "spawn_agent", prompt=prompt_with([{"text": "done"}]))
        second = simple.call(1, "reply", session_id=first["session_id"], prompt=prompt_with([{"text": "more"}]))
        assert (second["turn"], second["text"]) == (2, "more")
        assert named(second["next"]) == {"reply"}
        third = full.call(2, "get_session", session_id=first["session_id"])["outcome"]
        assert named(third["next"]) == {"continue_session", "end_session"}
