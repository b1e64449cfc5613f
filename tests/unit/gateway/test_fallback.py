"""A request that another model is to answer."""

from __future__ import annotations

from typing import Any

from server.gateway.fallback import substitutes, with_model
from server.gateway.requests import Endpoint, Outbound, write_json

THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "of another model"}


def an_outbound(**fields: Any) -> Outbound:
    body = {"model": "claude-opus-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], **fields}
    betas = "context-1m-2025-08-07,fine-grained-tool-streaming-2025-05-14"
    headers = {"anthropic-beta": betas, "accept": "x"}
    return Outbound(Endpoint.MESSAGES, "", headers, write_json(body), body, "claude-opus-4-5")


def test_thinking_and_what_goes_with_it_is_left_out_for_it_is_one_models_own() -> None:
    spoken = {"role": "assistant", "content": [THOUGHT, {"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]}
    silent = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}
    given = an_outbound(
        messages=[{"role": "user", "content": "hi"}, spoken, silent, {"role": "user", "content": "go on"}],
        thinking={"type": "enabled", "budget_tokens": 2000},
        context_management={"edits": [{"type": "clear_thinking_20251015"}, {"type": "clear_tool_uses_20250919"}]},
        output_config={"effort": "high", "format": {"type": "json_schema"}},
    )
    changed = with_model(given, "claude-haiku-4-5")
    assert changed.model == changed.body["model"] == "claude-haiku-4-5"
    assert changed.content == write_json(changed.body)
    assert "thinking" not in changed.body
    assert changed.body["context_management"] == {"edits": [{"type": "clear_tool_uses_20250919"}]}
    assert changed.body["output_config"] == {"format": {"type": "json_schema"}}
    assert [len(message["content"]) for message in changed.body["messages"] if message["role"] == "assistant"] == [1]
    assert changed.headers["anthropic-beta"] == "fine-grained-tool-streaming-2025-05-14"
    # What the agent asked for is left as it was, for the next model in the line.
    assert given.body["thinking"] == {"type": "enabled", "budget_tokens": 2000}
    assert given.body["messages"][1]["content"][0] == THOUGHT


def test_only_models_that_the_policy_permits_may_answer_and_not_the_one_asked_for() -> None:
    class NoHaiku:
        server_tools: frozenset[str] = frozenset()
        models = "all but Haiku"

        def permits_model(self, model: str) -> bool:
            return "haiku" not in model

    models = ["claude-opus-4-5", "claude-haiku-4-5", "claude-sonnet-4-5"]
    assert list(substitutes(an_outbound(), models, NoHaiku())) == ["claude-sonnet-4-5"]
