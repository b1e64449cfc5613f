"""The entries of a session's append-only log."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from server.models.base import Record


class EventKind(StrEnum):
    """Kinds of entries in a session's log. ``data`` of each is described at the place that writes it."""

    STATE = "state"
    TURN_STARTED = "turn_started"
    TURN_ENDED = "turn_ended"
    TEXT = "text"
    THINKING = "thinking"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    DENIAL = "denial"
    CHECKPOINT = "checkpoint"
    REWIND = "rewind"
    FORK = "fork"
    APPROVAL = "approval"
    BUDGET = "budget"
    NOTICE = "notice"


class Event(Record):
    """One entry of a session's append-only log."""

    session_id: str
    seq: int = Field(description="1, 2, 3 … without gaps within the session")
    at: datetime
    turn: int
    kind: EventKind
    data: dict[str, Any] = Field(default_factory=dict)
