"""The model's turns are counted as the CLI counts them."""

from __future__ import annotations

from claude_agent_sdk import AssistantMessage, ContentBlock, TextBlock, ToolResultBlock, ToolUseBlock, UserMessage

from server.turns.model_turns import ANSWERING, ModelTurns


def says(name: str, *blocks: ContentBlock, parent: str | None = None) -> AssistantMessage:
    return AssistantMessage(content=list(blocks), model="model", message_id=name, parent_tool_use_id=parent)


def calls(call: str, tool: str = "Bash") -> ToolUseBlock:
    return ToolUseBlock(id=call, name=tool, input={})


def answers(call: str, parent: str | None = None) -> UserMessage:
    return UserMessage(content=[ToolResultBlock(tool_use_id=call, content="")], parent_tool_use_id=parent)


def test_the_calls_of_the_last_turn_run_before_it_is_over() -> None:
    turns = ModelTurns()
    # One turn of the model comes as a message for each block.
    for block in (TextBlock("both"), calls("a"), calls("b")):
        turns.hear(says("first", block))
    assert (turns.used_up(1), turns.used_up(2)) == (False, False)
    turns.hear(answers("a"))
    assert not turns.used_up(1)
    turns.hear(answers("b"))
    assert (turns.used_up(1), turns.used_up(2)) == (True, False)
    turns.hear(says("second", calls("c")))
    assert (turns.used_up(1), turns.used_up(2)) == (True, False)


def test_an_answer_uses_no_further_turn_up() -> None:
    turns = ModelTurns()
    turns.hear(says("first", TextBlock("done")))
    assert not turns.used_up(1)
    turns.hear(says("second", calls("a", ANSWERING)))
    turns.hear(answers("a"))
    assert not turns.used_up(2)


def test_turns_of_subagents_are_their_own() -> None:
    turns = ModelTurns()
    turns.hear(says("first", calls("a")))
    for number in range(5):
        turns.hear(says(f"below {number}", calls(f"b{number}"), parent="a"))
        turns.hear(answers(f"b{number}", parent="a"))
    assert not turns.used_up(1)
