"""The one envelope that spawn, continue, fork and wait answer with."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from server.models.approvals import PendingApproval
from server.models.base import Failure, Record
from server.models.costs import Cost
from server.models.sessions import NotCopied, SessionState
from server.models.turns import StopReason


class Outcome(Record):
    """The one envelope that spawn, continue, fork and wait answer with (DESIGN section 7)."""

    session_id: str
    state: SessionState
    turn: int
    stop_reason: StopReason | None = Field(default=None, description="why the latest turn stopped; null till then")
    text: str = Field(default="", description="the agent's final words of the latest turn")
    structured_output: Any = Field(default=None, description="the answer in the form of output_schema")
    error: Failure | None = None
    cost: Cost = Field(default_factory=Cost)
    budget_remaining_usd: float | None = None
    checkpoint_id: str | None = Field(default=None, description="the start of this turn: rewind or fork from here")
    pending_approvals: tuple[PendingApproval, ...] = ()
    denials: int = Field(default=0, description="tool calls the policy denied in this turn")
    changed_files: tuple[str, ...] = ()
    not_copied: NotCopied | None = Field(
        default=None, description="what of the given directory the workspace did not get; in the first turn's outcome"
    )
    cursor: int = Field(default=0, description="sequence number of the latest event, for read_transcript(after=…)")
    next: str = Field(default="", description="what to call next")
