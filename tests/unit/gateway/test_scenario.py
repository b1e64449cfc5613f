"""The scripted model: how steps become messages, and how a conversation tells which one is next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.errors import ErrorCode, RookeryError
from server.gateway.scripted.answers import Answer, ScriptedModel
from server.gateway.scripted.conversation import read_conversation
from server.gateway.scripted.demo import MEND_PROMPT, WRITE_PROMPT
from server.gateway.scripted.scenario import Scenario, Step, messages_of, prompt_with, steps_in

REMINDER = {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>\n"}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def assistant(*content: Any) -> dict[str, Any]:
    return user(*content) | {"role": "assistant"}


def result(text: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": text}]}


def play(*messages: dict[str, Any], model: ScriptedModel | None = None, **fields: Any) -> Answer:
    return (model or ScriptedModel()).answer({"model": "claude-x", "messages": list(messages), **fields})


def words(answer: Answer) -> list[str]:
    return [block.tool or block.text for block in answer.blocks]


STEPS: list[dict[str, Any]] = [
    {"thinking": "hm"},
    {"text": "let me look"},
    {"tool": "Bash", "input": {"command": "ls"}},
    {"tool": "Read", "input": {"file_path": "a"}, "parallel": True},
    {"tool": "Write", "input": {}},
    {"usage": {"output_tokens": 5}},
    {"text": "done"},
]


def test_a_message_ends_after_its_tool_call() -> None:
    messages = messages_of([Step.model_validate(step) for step in STEPS])
    assert [[step.action for step in message.steps] for message in messages] == [
        ["thinking", "text", "tool", "tool"],
        ["tool"],
        ["text"],
    ]
    assert [message.usage for message in messages] == [None, None, {"output_tokens": 5}]


def test_the_conversation_tells_which_message_is_next() -> None:
    prompt = user(REMINDER, prompt_with(STEPS, "please"))
    history: list[dict[str, Any]] = [prompt]
    assert words(play(*history)) == ["hm", "let me look", "Bash", "Read"]
    history += [assistant({"type": "tool_use", "name": "Bash"}), user(result("files"), REMINDER)]
    assert words(play(*history)) == ["Write"]
    history += [assistant({"type": "tool_use", "name": "Write"}), user(result("written"))]
    answer = play(*history)
    assert words(answer) == ["done"]
    assert (answer.stop_reason, answer.usage) == ("end_turn", {"output_tokens": 5})
    history += [assistant("done"), user(prompt_with([{"text": "second turn"}]))]
    assert words(play(*history)) == ["second turn"]


@pytest.mark.parametrize(
    "injected",
    [
        "[Request interrupted by user]",
        "<task-notification>\n<task-id>1</task-id></task-notification>",
        "Output token limit hit. Resume directly",
        "Continue from where you left off.",
    ],
)
def test_what_the_cli_says_in_the_users_name_is_no_prompt(injected: str) -> None:
    conversation = read_conversation({"messages": [user("mine"), assistant("a"), user(injected)]})
    assert (conversation.prompt, conversation.answers) == ("mine", 1)


def test_a_prompt_that_got_no_answer_is_not_played_again_with_the_next_one() -> None:
    both = user(prompt_with([{"tool": "Bash"}, {"text": "never"}]), REMINDER, prompt_with([{"text": "the next"}]))
    assert words(play(both)) == ["the next"]


def test_a_scenario_can_hold_one_for_a_subagent() -> None:
    inner = prompt_with([{"text": "from below"}])
    steps = [{"tool": "Agent", "input": {"prompt": inner}}, {"text": "from above"}]
    assert words(play(user(prompt_with(steps)))) == ["Agent"]
    assert words(play(user(inner))) == ["from below"]


def test_an_error_persists_without_times_and_passes_with_it() -> None:
    prompt = user(prompt_with([{"error": 529}, {"text": "never"}]))
    model = ScriptedModel()
    assert [play(prompt, model=model).failure is None for _ in range(3)] == [False] * 3
    prompt = user(prompt_with([{"error": 529, "times": 2}, {"text": "now"}]))
    answers = [play(prompt, model=model) for _ in range(3)]
    assert [answer.failure is None for answer in answers] == [False, False, True]
    assert words(answers[2]) == ["now"]


def test_attempts_are_counted_for_each_session_on_its_own() -> None:
    prompt = user(prompt_with([{"error": 529, "times": 1}, {"text": "now"}]))
    model = ScriptedModel()
    for session in ("a", "b"):
        assert play(prompt, model=model, metadata={"user_id": session}).failure is not None
        assert play(prompt, model=model, metadata={"user_id": session}).failure is None


def test_a_piece_that_a_broken_stream_left_in_the_conversation_is_an_attempt_not_an_answer() -> None:
    steps: list[dict[str, Any]] = [{"text": "half"}, {"cut": True, "times": 1}, {"text": "whole"}]
    history = [user(prompt_with(steps)), assistant("half")]
    history.append(user("Your response above was cut off mid-stream. Resume directly from where it stops"))
    assert words(play(*history)) == ["whole"]


@pytest.mark.parametrize(
    ("echo", "expected"),
    [
        ("last_tool_result", "two"),
        ("tool_results", "one\ntwo"),
        ("system", "be brief"),
        ("tools", "Bash Read"),
        ("model", "claude-x"),
    ],
)
def test_a_reply_can_prove_what_reached_the_model(echo: str, expected: str) -> None:
    steps: list[dict[str, Any]] = [{"tool": "A"}, {"tool": "B"}, {"reply_with": echo}]
    history = [user(prompt_with(steps)), assistant(), user(result("one")), assistant(), user(result("two"))]
    answer = play(*history, system="be brief", tools=[{"name": "Read"}, {"name": "Bash"}])
    assert answer.blocks[0].text == expected


def test_a_prompt_without_a_scenario_gets_a_friendly_word() -> None:
    assert "good morning" in play(user("good morning")).blocks[0].text


@pytest.mark.parametrize(
    "broken", ["scenario: [", 'scenario: {"text": "x"}', 'scenario: [{"walk": 1}]', "scenario: [{}]"]
)
def test_a_broken_scenario_is_said_to_be_broken(broken: str) -> None:
    assert "cannot read the scenario" in play(user(broken)).blocks[0].text


def test_a_prompt_without_the_marker_carries_no_steps() -> None:
    assert steps_in("just words") is None


def test_an_asked_for_form_is_filled_in_without_a_scenario() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "names": {"type": "array", "items": {"type": "string"}}},
    }
    answer = play(user("count"), tools=[{"name": "StructuredOutput", "input_schema": schema}])
    assert answer.blocks[0].tool == "StructuredOutput"
    assert json.loads(answer.blocks[0].text) == {"n": 1, "names": ["count"]}


def test_a_side_request_for_json_gets_json_and_not_the_scenario() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    prompt = user(prompt_with([{"tool": "Bash"}], "name this"))
    answer = play(prompt, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(answer.blocks[0].text)["title"].startswith("name this")


def test_the_demo_plays_for_its_two_prompts() -> None:
    assert "Write" in words(play(user(WRITE_PROMPT)))
    assert words(play(user(WRITE_PROMPT), assistant("x"), user(MEND_PROMPT)))[-1] == "Read"


def test_a_file_names_what_is_played_for_which_prompt(tmp_path: Path) -> None:
    path = tmp_path / "scenario.json"
    turns = [{"match": "HELLO", "steps": [{"text": "hi"}]}, {"regex": "^b.e$", "steps": [{"text": "cu"}]}]
    path.write_text(json.dumps({"turns": turns}))
    model = ScriptedModel(Scenario.load(path))
    assert words(play(user("oh hello"), model=model)) == ["hi"]
    assert words(play(user("bye"), model=model)) == ["cu"]
    assert "scripted" in words(play(user("else"), model=model))[0]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"turns": [{"steps": [{"no": 1}]}]}', '{"turns": [{"regex": "(", "steps": []}]}']
)
def test_a_file_that_is_no_scenario_is_refused_with_the_reason(tmp_path: Path, content: str) -> None:
    path = tmp_path / "scenario.json"
    path.write_text(content)
    with pytest.raises(RookeryError) as refused:
        Scenario.load(path)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    assert str(tmp_path) not in refused.value.message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RookeryError) as refused:
        Scenario.load(tmp_path / "none.json")
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


def test_figures_grow_with_the_conversation_and_come_from_cache() -> None:
    first = play(user("good morning"), system="s" * 400).usage
    second = play(user("good morning"), assistant("hello"), user("and now?"), system="s" * 400).usage
    assert first["cache_read_input_tokens"] == 0
    assert second["cache_read_input_tokens"] >= 100
