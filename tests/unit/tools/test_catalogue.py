"""What a client sees of the tools before it calls any."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
from mcp import Client
from mcp_types import Tool

from server.errors import ErrorCode, RookeryError
from server.models import Outcome, SessionState
from tests.surface import ERAS, Era, error_of
from tools.backend import Registry
from tools.instructions import instructions_for
from tools.server import build_server
from tools.toolsets import TOOLS, tools_of

READ_ONLY = {
    "wait_for_sessions",
    "get_session",
    "list_sessions",
    "read_transcript",
    "get_costs",
    "list_files",
    "read_file",
    "diff_files",
    "export_changes",
    "list_approvals",
    "explain_policy",
}
DESTRUCTIVE = {"continue_session", "end_session", "rewind_files", "write_file"}
STARTS_AGENTS = {"spawn_agent", "continue_session", "fork_session", "answer_approval"}
CHANGES_NOTHING_TWICE = READ_ONLY | {"interrupt_session", "end_session", "rewind_files", "write_file"}


class FailedBackend:
    """A backend whose registry could not start."""

    async def registry(self) -> Registry:
        raise RookeryError(ErrorCode.STORAGE_UNAVAILABLE, "The database cannot be opened: look at ROOKERY_HOME.")


@pytest.fixture
async def tools() -> dict[str, Tool]:
    async with Client(build_server(FailedBackend())) as client:
        return {tool.name: tool for tool in (await client.list_tools()).tools}


async def test_hints_say_what_reads_what_destroys_and_what_costs(tools: dict[str, Tool]) -> None:
    hints = {name: tool.annotations for name, tool in tools.items() if tool.annotations is not None}
    assert {name for name, hint in hints.items() if hint.read_only_hint} == READ_ONLY
    assert {name for name, hint in hints.items() if hint.destructive_hint} == DESTRUCTIVE
    assert {name for name, hint in hints.items() if hint.open_world_hint} == STARTS_AGENTS
    assert {name for name, hint in hints.items() if hint.idempotent_hint} == CHANGES_NOTHING_TWICE


async def test_every_tool_has_a_title_a_description_and_both_schemas(tools: dict[str, Tool]) -> None:
    for tool in tools.values():
        assert tool.title
        assert tool.description
        assert tool.input_schema["type"] == "object"
        assert tool.output_schema is not None
        assert tool.output_schema["type"] == "object"


async def test_the_main_arguments_are_those_that_the_design_fixes(tools: dict[str, Tool]) -> None:
    spawn = tools["spawn_agent"].input_schema
    assert spawn["required"] == ["prompt"]
    assert set(spawn["properties"]) == {
        "prompt",
        "wait_s",
        "request_id",
        "title",
        "model",
        "system_prompt",
        "policy",
        "tools",
        "max_turns",
        "budget_usd",
        "budget_tokens",
        "workspace",
        "sandbox",
        "output_schema",
        "labels",
    }
    assert spawn["properties"]["wait_s"]["default"] == 45
    assert set(tools["wait_for_sessions"].input_schema["properties"]) == {"session_ids", "until", "wait_s"}
    assert set(tools["get_costs"].input_schema["properties"]) == {"session_id", "tree", "group_by"}


@pytest.mark.parametrize("era", ERAS)
async def test_the_list_is_the_same_each_time_and_in_both_eras(era: Era, tools: dict[str, Tool]) -> None:
    async with Client(build_server(FailedBackend()), mode=era) as client:
        listed = [tool.model_dump() for tool in (await client.list_tools()).tools]
        assert listed == [tool.model_dump() for tool in (await client.list_tools()).tools]
    assert listed == [tool.model_dump() for tool in tools.values()]


@pytest.mark.parametrize("tool", ["spawn_agent", "run_agent"])
async def test_a_key_that_is_none_is_told_as_the_callers_mistake(tool: str) -> None:
    async with Client(build_server(FailedBackend(), tools=tools_of(["all", "simple"]))) as client:
        for key in ("a/b", "", "a\0b", "x" * 150):
            error = error_of(await client.call_tool(tool, {"prompt": "x", "request_id": key}))
            assert error["code"] == "invalid_argument"
            assert "`request_id`" in error["message"]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("toolset", ["all", "sessions,files", "costs", "simple", "simple,all"])
def test_the_instructions_name_only_what_there_is(toolset: str, read_only: bool) -> None:
    if toolset == "simple" and read_only:
        pytest.skip("nothing of it is left, which is refused")
    tools = {tool.name: tool for tool in tools_of(toolset.split(","), read_only=read_only)}
    arguments = {name for tool in tools.values() for name in tool.arguments.model_fields}
    known = set(tools) | arguments | set(Outcome.model_fields) | set(SessionState)
    text = instructions_for(set(tools))
    assert set(re.findall(r"[a-z]+(?:_[a-z]+)+", text)) <= known
    assert ("spawn_agent" in text) == ("spawn_agent" in tools)
    assert ("run_agent" in text) == ("run_agent" in tools)


@pytest.mark.parametrize(
    ("toolset", "read_only", "expected"),
    [
        ("all", False, {"delegate", "parallel", "review"}),
        ("all", True, {"review"}),
        ("sessions,costs", False, {"parallel"}),
        ("simple", False, set()),
    ],
)
async def test_prompts_speak_only_of_tools_that_are_offered(toolset: str, read_only: bool, expected: set[str]) -> None:
    offered = tools_of(toolset.split(","), read_only=read_only)
    server = build_server(FailedBackend(), tools=offered, read_only=read_only)
    async with Client(server) as client:
        prompts = (await client.list_prompts()).prompts
        assert {prompt.name for prompt in prompts} == expected
        for prompt in prompts:
            required = {one.name: "x" for one in prompt.arguments or () if one.required}
            text = str((await client.get_prompt(prompt.name, required)).messages)
            assert {name for name in (tool.name for tool in TOOLS) if name in text} <= {tool.name for tool in offered}


def test_toolsets_choose_and_read_only_mode_leaves_what_changes_nothing() -> None:
    assert [tool.name for tool in tools_of(["simple"])] == ["run_agent", "reply"]
    assert tools_of(["all"]) == TOOLS
    assert {tool.name for tool in tools_of(["all", "simple"])} == {tool.name for tool in TOOLS} | {"run_agent", "reply"}
    assert {tool.name for tool in tools_of(["all"], read_only=True)} == READ_ONLY
    for names, read_only in ((["sessions", "nonsense"], False), ([], False), (["simple"], True)):
        with pytest.raises(RookeryError) as refused:
            tools_of(names, read_only=read_only)
        assert refused.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("era", ERAS)
async def test_a_registry_that_cannot_start_is_a_typed_error_of_each_call(era: Era) -> None:
    async with Client(build_server(FailedBackend()), mode=era) as client:
        for tool, arguments in (("list_sessions", {}), ("spawn_agent", {"prompt": "x"})):
            error = error_of(await client.call_tool(tool, arguments))
            assert (error["code"], error["retryable"]) == ("storage_unavailable", True)
        # What is wrong with the call itself is told even then.
        assert error_of(await client.call_tool("spawn_agent", {}))["code"] == "invalid_argument"


async def test_answers_have_plain_schemas_that_are_cheap_to_check(tools: dict[str, Tool]) -> None:
    """Clients check each answer in pure Python: references and unions would cost more than the call itself."""
    for tool in tools.values():
        assert not words_of(tool.output_schema) & {"$ref", "$defs", "anyOf", "default", "format"}, tool.name
    outcome = tools["spawn_agent"].output_schema
    assert outcome is not None
    assert outcome["properties"]["error"]["type"] == ["object", "null"]
    assert None in outcome["properties"]["stop_reason"]["enum"]


async def test_a_failure_is_no_breach_of_any_tools_schema(tools: dict[str, Tool]) -> None:
    """Clients of the TypeScript SDK check failed calls against it as well."""
    error = {"code": "session_busy", "message": "A turn runs in this session.", "retryable": True}
    for tool in tools.values():
        assert tool.output_schema is not None
        jsonschema.validate(error, tool.output_schema)


def words_of(schema: Any) -> set[str]:
    """The words of JSON Schema that a schema uses; the names of fields are none."""
    if isinstance(schema, list):
        return set().union(*(words_of(part) for part in schema))
    if not isinstance(schema, dict):
        return set()
    found = set(schema)
    for word, part in schema.items():
        found |= set().union(*(words_of(its) for its in part.values())) if word == "properties" else words_of(part)
    return found
