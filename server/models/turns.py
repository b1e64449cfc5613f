"""A turn: a prompt and all the agent did until it stopped."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from server.models.base import Failure, Record


class StopReason(StrEnum):
    """Why a turn stopped. Closed (DESIGN section 2)."""

    END_TURN = "end_turn"
    INTERRUPTED = "interrupted"
    AWAITING_APPROVAL = "awaiting_approval"
    BUDGET_EXCEEDED = "budget_exceeded"
    MAX_TURNS = "max_turns"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    ERROR = "error"


class TurnOrigin(StrEnum):
    PROMPT = "prompt"
    BACKGROUND = "background"
    """A result that no prompt asked for: a background task of the agent woke it (DESIGN section 3.4)."""


class TurnRecord(Record):
    """One turn: a prompt and all the agent did until it stopped."""

    session_id: str
    number: int
    origin: TurnOrigin = TurnOrigin.PROMPT
    prompt: str
    request_id: str | None = None
    stop_reason: StopReason | None = Field(default=None, description="None while it runs")
    text: str = ""
    structured_output: Any = None
    error: Failure | None = None
    denials: int = 0
    changed_files: tuple[str, ...] = ()
    checkpoint_id: str | None = Field(default=None, description="checkpoint of its start")
    end_checkpoint_id: str | None = None
    sdk_cost_usd: float | None = Field(default=None, description="the SDK's own cumulative figure, for comparison")
    started_at: datetime
    ended_at: datetime | None = None
