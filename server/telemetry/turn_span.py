"""The trace of one turn: a span for it, and below it one for each tool that the agent uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from claude_agent_sdk import AssistantMessage, Message, ToolResultBlock, ToolUseBlock, UserMessage
from opentelemetry import context, trace
from opentelemetry.context import Context

from server.models import SessionRecord, TurnRecord
from server.telemetry.spans import TRACER, mark_failed

MAX_OPEN_TOOLS: Final = 64
"""Tool calls of one turn whose spans are open at a time; more go without one."""

MAX_NAME: Final = 100


class TurnSpan:
    """Follows a turn from the moment it is asked for.

    Args:
        session: whose turn.
        turn: its row as it begins.
        parent: the trace of the call that asked for it; None for a turn that nobody asked for.
    """

    def __init__(self, session: SessionRecord, turn: TurnRecord, parent: Context | None) -> None:
        self._span = TRACER.start_span(
            "invoke_agent rookery",
            context=parent if parent is not None else Context(),
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": "rookery",
                "gen_ai.provider.name": "anthropic",
                "gen_ai.conversation.id": session.id,
                "rookery.turn": turn.number,
                "rookery.origin": turn.origin.value,
                **({"gen_ai.request.model": session.model} if session.model is not None else {}),
            },
        )
        self.context: Final = trace.set_span_in_context(self._span, Context())
        """What belongs to the turn is traced below this."""
        self._tools: dict[str, trace.Span] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        """Let what runs in the block belong to the turn."""
        token = context.attach(self.context)
        try:
            yield
        finally:
            context.detach(token)

    def hear(self, message: Message) -> None:
        """Open and close spans of tools by what the agent says. It is not trusted: sizes and numbers are bounded."""
        if isinstance(message, AssistantMessage):
            for block in message.content:
                if isinstance(block, ToolUseBlock):
                    self._begin_tool(block)
        elif isinstance(message, UserMessage) and isinstance(message.content, list):
            for block in message.content:
                if isinstance(block, ToolResultBlock):
                    self._end_tool(block.tool_use_id, failed=bool(block.is_error))

    def _begin_tool(self, block: ToolUseBlock) -> None:
        if block.id in self._tools or len(self._tools) >= MAX_OPEN_TOOLS:
            return
        name = block.name[:MAX_NAME]
        self._tools[block.id] = TRACER.start_span(
            f"execute_tool {name}",
            context=self.context,
            attributes={
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": name,
                "gen_ai.tool.call.id": block.id[:MAX_NAME],
            },
        )

    def _end_tool(self, tool_use_id: str, *, failed: bool) -> None:
        span = self._tools.pop(tool_use_id, None)
        if span is not None:
            if failed:
                mark_failed(span, "tool_error")
            span.end()

    def end(self, record: TurnRecord) -> None:
        """The turn is over; tools that never answered end with it."""
        for tool_use_id in list(self._tools):
            self._end_tool(tool_use_id, failed=True)
        if record.stop_reason is not None:
            self._span.set_attribute("rookery.stop_reason", record.stop_reason.value)
        self._span.set_attribute("rookery.denials", record.denials)
        if record.error is not None:
            mark_failed(self._span, record.error.code.value)
        self._span.end()
