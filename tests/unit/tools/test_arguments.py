"""Arguments of a tool: what is wrong is said in our words, with the argument's name and the remedy (P12)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.errors import ErrorCode, RookeryError
from tools.arguments import parse_arguments
from tools.costs import CostArguments
from tools.schemas import input_schema
from tools.sessions import ContinueArguments, SpawnArguments, WaitArguments
from tools.toolsets import TOOLS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({}, "`prompt` is missing"),
    "an empty prompt": ({"prompt": ""}, "`prompt` is empty: say what the agent should do"),
    "a blank prompt": ({"prompt": " \n\t"}, "`prompt` is empty"),
    "a prompt beyond the limit": ({"prompt": "x" * 1_000_001}, "`prompt` is longer than 1,000,000 bytes"),
    "a number as prompt": ({"prompt": 5}, "`prompt` must be a string"),
    "null as prompt": ({"prompt": None}, "`prompt` must be a string"),
    "a lone surrogate": ({"prompt": "\ud800"}, "send plain Unicode"),
    "an unknown argument": ({"prompt": "x", "promt": "y"}, "`promt` is not known to spawn_agent, which takes prompt,"),
    "a negative wait": ({"prompt": "x", "wait_s": -1}, "`wait_s` must be at least 0"),
    "an endless wait": ({"prompt": "x", "wait_s": 3601}, "`wait_s` must be at most 3600"),
    "an infinite wait": ({"prompt": "x", "wait_s": float("inf")}, "`wait_s` must be"),
    "a wait that is no number": ({"prompt": "x", "wait_s": float("nan")}, "`wait_s` must be"),
    "a wait in words": ({"prompt": "x", "wait_s": "soon"}, "`wait_s` must be a number"),
    "a number in quotes": ({"prompt": "x", "wait_s": "5"}, "`wait_s` must be a number"),
    "true as a number": ({"prompt": "x", "wait_s": True}, "`wait_s` must be a number"),
    "half a turn": ({"prompt": "x", "max_turns": 1.5}, "`max_turns` must be a whole number"),
    "a huge number": ({"prompt": "x", "max_turns": 10**400}, "`max_turns`"),
    "no budget at all": ({"prompt": "x", "budget_usd": 0}, "`budget_usd` must be greater than 0"),
    "a negative budget": ({"prompt": "x", "budget_usd": -1}, "`budget_usd` must be greater than 0"),
    "a budget that is no number": ({"prompt": "x", "budget_usd": float("nan")}, "`budget_usd` must be"),
    "a huge budget": ({"prompt": "x", "budget_usd": 1e30}, "`budget_usd` must be at most 100000"),
    "a budget of no tokens": ({"prompt": "x", "budget_tokens": 0}, "`budget_tokens` must be greater than 0"),
    "a huge budget in tokens": ({"prompt": "x", "budget_tokens": 10**18}, "`budget_tokens` must be at most 1e+15"),
    "half a token": ({"prompt": "x", "budget_tokens": 1.5}, "`budget_tokens` must be a whole number"),
    "far too many labels": (
        {"prompt": "x", "labels": {f"k{number}": "v" for number in range(10_000)}},
        "`labels` has more than 32 entries",
    ),
    "a malformed model": ({"prompt": "x", "model": "--help"}, "`model` is not a model name"),
    "a malformed policy": ({"prompt": "x", "policy": "../secret"}, "`policy` is not an identifier"),
    "a malformed tool": ({"prompt": "x", "tools": ["Read", "rm -rf"]}, "`tools` holds 'rm -rf'"),
    "a label that is no text": ({"prompt": "x", "labels": {"team": 5}}, "`labels.team` must be a string"),
    "two workspaces": ({"prompt": "x", "workspace": {"path": "/a", "git": "b"}}, "`workspace` needs exactly one"),
    "an unknown workspace": ({"prompt": "x", "workspace": {"zip": "a"}}, "`workspace.zip` is not known"),
    "a workspace in words": ({"prompt": "x", "workspace": "here"}, "`workspace` must be an object"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_p12_a_bad_argument_is_named_with_its_remedy(name: str) -> None:
    """P12: wrong types, unknown fields, oversize and malformed values get a typed answer."""
    arguments, words = FAULTS[name]
    with pytest.raises(RookeryError) as caught:
        parse_arguments(SpawnArguments, arguments, tool="spawn_agent")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert words in caught.value.message


def test_p12_a_group_of_costs_that_does_not_exist_is_refused() -> None:
    """P12: the message names those that there are."""
    with pytest.raises(RookeryError, match="invalid_argument: `group_by` must be one of 'session', 'model'"):
        parse_arguments(CostArguments, {"group_by": "planet"}, tool="get_costs")


@pytest.mark.parametrize("session_id", ["", "../etc/passwd", "-rf", "a b", "x" * 129, "a\nb", "a\x00b"])
def test_p12_an_id_that_is_none_is_refused_before_anything_is_looked_up(session_id: str) -> None:
    """P12: path-like and flag-like ids."""
    with pytest.raises(RookeryError, match="invalid_argument: `session_id` "):
        parse_arguments(ContinueArguments, {"session_id": session_id, "prompt": "x"}, tool="continue_session")


@pytest.mark.parametrize("prompt", ["/help", "-p --dangerous", "@/etc/passwd", "  indented\n", '{"a": 1}', "null", "5"])
def test_p12_a_prompt_is_taken_word_for_word(prompt: str) -> None:
    """P12: nothing in a prompt is read as JSON, a flag or a command."""
    parsed = parse_arguments(SpawnArguments, {"prompt": prompt, "system_prompt": prompt}, tool="spawn_agent")
    assert parsed.prompt == parsed.system_prompt == prompt


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(RookeryError) as caught:
        parse_arguments(SpawnArguments, {"wait_s": "x", "oops": 1}, tool="spawn_agent")
    assert all(word in caught.value.message for word in ("`prompt`", "`wait_s`", "`oops`"))


def test_a_message_repeats_no_value_and_no_endless_name() -> None:
    secret = "sk-ant-" + "x" * 500
    with pytest.raises(RookeryError) as caught:
        parse_arguments(SpawnArguments, {"prompt": 5, "title": [secret], "labels": {secret: 1}}, tool="spawn_agent")
    assert secret not in caught.value.message
    assert len(caught.value.message) < 2_000


def test_objects_and_lists_sent_as_json_text_are_understood() -> None:
    parsed = parse_arguments(
        SpawnArguments,
        {"prompt": "x", "labels": '{"team": "red"}', "workspace": '{"files": {"a": "b"}}', "tools": '["Read"]'},
        tool="spawn_agent",
    )
    assert parsed.labels == {"team": "red"}
    assert parsed.workspace is not None
    assert parsed.workspace.files == {"a": "b"}
    assert parsed.tools == ("Read",)
    waiting = parse_arguments(WaitArguments, {"session_ids": '["a", "b"]'}, tool="wait_for_sessions")
    assert waiting.session_ids == ("a", "b")


@settings(suppress_health_check=[HealthCheck.too_slow])  # a loaded machine draws slowly
@given(arguments=st.dictionaries(st.sampled_from(list(SpawnArguments.model_fields)) | st.text(), JSON))
def test_whatever_is_sent_either_parses_or_is_an_invalid_argument(arguments: dict[str, Any]) -> None:
    try:
        parse_arguments(SpawnArguments, arguments, tool="spawn_agent")
    except RookeryError as error:
        assert error.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("definition", TOOLS, ids=lambda definition: str(definition.name))
def test_the_published_schema_is_closed_and_describes_every_argument(definition: Any) -> None:
    schema = input_schema(definition.arguments)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    undescribed = [name for name, part in schema["properties"].items() if not part.get("description")]
    assert not undescribed
