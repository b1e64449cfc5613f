"""What a turn says while it runs, and when it has ended: the SDK's messages turned into events.

Pure: messages in, events out. A turn has ended when its result came and no background task of it runs (DESIGN
section 3.4).
"""

from __future__ import annotations

from typing import Any, Final

from claude_agent_sdk import (
    AssistantMessage,
    ContentBlock,
    Message,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from claude_agent_sdk.types import TERMINAL_TASK_STATUSES

from server.bounded import bounded
from server.models import EventKind
from server.turns.model_turns import ModelTurns

MAX_TASKS: Final = 1_000
"""Background tasks followed at once; a CLI that claims more is not believed."""

Entry = tuple[EventKind, dict[str, Any]]


class TurnTracker:
    """Follows one agent's messages through its turns."""

    def __init__(self) -> None:
        self.result: ResultMessage | None = None
        """The latest result since ``begin``."""
        self.tasks: dict[str, str] = {}
        """Background tasks that run now: id → description."""
        self.agent_state: str | None = None
        """What the CLI says of itself: ``running``, ``requires_action``, ``idle``."""
        self.text = ""
        """The agent's latest words in this turn."""
        self.owes_turn = False
        """A background task finished and the agent is about to be woken by it."""
        self.model_turns = ModelTurns()
        """The model's turns since ``begin``."""
        self._calls: dict[str, str] = {}

    def begin(self) -> None:
        """A prompt is about to be sent, or the agent woke by itself."""
        self.result = None
        self.text = ""
        self.owes_turn = False
        self.model_turns = ModelTurns()
        self._calls.clear()

    @property
    def ended(self) -> bool:
        """Whether the turn's result came and nothing of it runs on."""
        return self.result is not None and not self.tasks

    @property
    def at_rest(self) -> bool:
        """Whether the turn has ended and the agent is not about to go on by itself."""
        return self.ended and self.agent_state == "idle" and not self.owes_turn

    def feed(self, message: Message) -> list[Entry]:
        """Take a message; the events that it makes."""
        self.model_turns.hear(message)
        match message:
            case ResultMessage():
                self.result = message
                return []
            case AssistantMessage(content=blocks, parent_tool_use_id=parent):
                return [entry for block in blocks for entry in self._block(block, parent)]
            case UserMessage(content=list(blocks), parent_tool_use_id=parent):
                # What else stands in it are the CLI's own words, such as that it was interrupted, not the agent's.
                results = [block for block in blocks if isinstance(block, ToolResultBlock)]
                return [entry for block in results for entry in self._block(block, parent)]
            case SystemMessage(subtype=subtype, data=data):
                return self._system(subtype, data)
            case _:
                return []

    def _block(self, block: ContentBlock, parent: str | None) -> list[Entry]:
        by = {"subagent": parent} if parent else {}
        match block:
            case TextBlock(text=text) if text.strip():
                if parent is None:
                    self.text = text
                return [(EventKind.TEXT, {"text": bounded(text), **by})]
            case ThinkingBlock(thinking=text) if text.strip():
                return [(EventKind.THINKING, {"text": bounded(text), **by})]
            case ToolUseBlock(id=call, name=name, input=given):
                self._calls[call] = name
                return [(EventKind.TOOL_CALL, {"id": call, "tool": name, "input": _bounded_input(given), **by})]
            case ToolResultBlock(tool_use_id=call, content=content, is_error=is_error):
                data = {
                    "id": call,
                    "tool": self._calls.pop(call, ""),
                    "text": bounded(_flat(content)),
                    "is_error": bool(is_error),
                }
                return [(EventKind.TOOL_RESULT, {**data, **by})]
            case _:
                return []

    def _system(self, subtype: str, data: dict[str, Any]) -> list[Entry]:
        task = data.get("task_id")
        match subtype:
            case "session_state_changed":
                state = data.get("state")
                self.agent_state = state if isinstance(state, str) else None
                if state == "running":
                    self.owes_turn = False
            case "task_started" if (
                isinstance(task, str) and data.get("is_backgrounded") and len(self.tasks) < MAX_TASKS
            ):
                self.tasks[task] = str(data.get("description", ""))[:200]
                return [(EventKind.NOTICE, {"text": f"Background task started: {self.tasks[task]}"})]
            case "task_notification" if isinstance(task, str):
                self._finish(task, data.get("status") in ("completed", "failed"))
            case "task_updated" if isinstance(task, str):
                patch = data.get("patch")
                if isinstance(patch, dict) and patch.get("status") in TERMINAL_TASK_STATUSES:
                    self._finish(task, patch.get("status") in ("completed", "failed"))
            case "compact_boundary":
                return [(EventKind.NOTICE, {"text": "The conversation was compacted."})]
            case "mirror_error":
                return [(EventKind.NOTICE, {"text": "A part of the transcript could not be stored.", "level": "error"})]
            case _:
                pass
        return []

    def _finish(self, task: str, wakes: bool) -> None:
        if self.tasks.pop(task, None) is not None and wakes:
            self.owes_turn = True


def _bounded_input(given: dict[str, Any]) -> dict[str, Any]:
    return {key[:200]: bounded(value) if isinstance(value, str) else value for key, value in given.items()}


def _flat(content: str | list[dict[str, Any]] | None) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = [
        str(block.get("text", "")) if block.get("type") == "text" else f"[{block.get('type', 'content')}]"
        for block in content
        if isinstance(block, dict)
    ]
    return "\n".join(parts)
