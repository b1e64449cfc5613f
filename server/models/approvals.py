"""Questions that a policy sends to a person."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from server.models.base import Record


class ApprovalStatus(StrEnum):
    """Where an approval stands. Only a pending one can be decided, once."""

    PENDING = "pending"
    ALLOWED = "allowed"
    DENIED = "denied"
    EXPIRED = "expired"
    """Nobody answered in time: the same as denied."""


class ApprovalRecord(Record):
    """A tool call that a policy sent to a human or to the orchestrator."""

    id: str
    session_id: str
    principal: str
    turn: int
    tool_use_id: str
    tool: str
    input_digest: str = Field(description="digest of the input: what was allowed is this call and no other")
    summary: str
    input: dict[str, Any]
    rule: str = Field(description="the rule of the policy that asks")
    status: ApprovalStatus = ApprovalStatus.PENDING
    note: str = Field(default="", description="words of the one who decided, for the agent")
    decided_by: str | None = None
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None = None
    set_aside: bool = Field(
        default=False, description="its call was refused for the moment: the answer is for the same call, made again"
    )


class PendingApproval(Record):
    """A question that waits for its answer, as shown in outcomes."""

    approval_id: str
    tool: str
    summary: str
    expires_at: datetime
