"""Whose words a turn's text is made of."""

from __future__ import annotations

from claude_agent_sdk import AssistantMessage, TextBlock, UserMessage

from server.turns.tracker import TurnTracker


def test_the_clis_own_words_in_the_users_name_are_not_the_agents() -> None:
    tracker = TurnTracker()
    tracker.begin()
    said = tracker.feed(AssistantMessage(content=[TextBlock("working on it")], model="model"))
    assert [data["text"] for _, data in said] == ["working on it"]
    assert tracker.feed(UserMessage(content=[TextBlock("[Request interrupted by user for tool use]")])) == []
    assert tracker.text == "working on it"
