"""How often the model has had its say in a turn, counted as the CLI counts for ``--max-turns``.

The CLI is told its limit when it starts. One that a policy sets later is kept by the host, in the same way: the model
has so many turns, the calls of the last one run, and it is not asked again.
"""

from __future__ import annotations

from typing import Final

from claude_agent_sdk import AssistantMessage, Message, ToolResultBlock, ToolUseBlock, UserMessage

ANSWERING: Final = "StructuredOutput"
"""The call by which the agent ends its turn: the model is not asked again after it."""


class ModelTurns:
    """The model's turns since a prompt; those of subagents are their own."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._asked_for_calls = False
        self._under_way: set[str] = set()

    def hear(self, message: Message) -> None:
        """Take what the agent said."""
        match message:
            case AssistantMessage(content=blocks, message_id=str(name), parent_tool_use_id=None, error=None):
                if name not in self._seen:
                    self._seen.add(name)
                    self._asked_for_calls = False
                    self._under_way.clear()
                calls = {block.id for block in blocks if isinstance(block, ToolUseBlock) and block.name != ANSWERING}
                self._under_way |= calls
                self._asked_for_calls = self._asked_for_calls or bool(calls)
            case UserMessage(content=list(blocks), parent_tool_use_id=None):
                self._under_way -= {block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock)}

    def used_up(self, most: int) -> bool:
        """Whether the agent goes on though the model has had so many turns."""
        done = self._asked_for_calls and not self._under_way
        return len(self._seen) > most or (len(self._seen) == most and done)
