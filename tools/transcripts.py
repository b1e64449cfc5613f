"""The tool that reads a session's log, a page at a time."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from server.models import Event
from server.views import TranscriptPage
from tools import rendering
from tools.definition import Call, ToolDefinition
from tools.sessions import SessionArguments

MAX_PAGE_CHARACTERS: Final = 60_000
"""Size of one page's text: clients cut a tool's answer at about 25,000 tokens, structured content and text together."""

MAX_FIELD_CHARACTERS: Final = 8_000
"""Longest text of one event here; the resource ``rookery://sessions/{id}/transcript`` holds it whole."""


class TranscriptArguments(SessionArguments):
    after: int = Field(default=0, ge=0, le=2**53, description="read events after this cursor; 0 from the beginning")
    limit: int = Field(default=100, ge=1, le=500, description="most events to answer with")


async def read_transcript(call: Call, arguments: TranscriptArguments) -> TranscriptPage:
    """Read what happened in a session: prompts, the agent's words, tool calls with their results, and state changes.

    Answers oldest first, in pages: while `more` is true, pass `cursor` as `after`. With the `cursor` of an outcome as
    `after`, it shows only what is new since.
    """
    page = await call.registry.transcript(
        call.principal, arguments.session_id, after=arguments.after, limit=arguments.limit
    )
    return fitted(page)


def fitted(page: TranscriptPage) -> TranscriptPage:
    """The page with long texts cut and as many events as fit into one answer; at least one."""
    events: list[Event] = []
    size = 0
    for event in page.events:
        shown = event.model_copy(update={"data": _cut(event.data)})
        size += len(shown.model_dump_json())
        if events and size > MAX_PAGE_CHARACTERS:
            return page.model_copy(update={"events": tuple(events), "cursor": events[-1].seq, "more": True})
        events.append(shown)
    return page.model_copy(update={"events": tuple(events)})


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_FIELD_CHARACTERS:
        left = len(value) - MAX_FIELD_CHARACTERS
        return f"{value[:MAX_FIELD_CHARACTERS]}… [{left:,} more characters in the transcript resource]"
    if isinstance(value, dict):
        return {name: _cut(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_cut(member) for member in value]
    return value


TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = (
    ToolDefinition(
        name="read_transcript",
        title="Read a transcript",
        run=read_transcript,
        arguments=TranscriptArguments,
        answer=TranscriptPage,
        render=rendering.transcript_text,
        read_only=True,
    ),
)
