"""Decisions on tool calls, as the audit keeps them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from server.models.base import Record


class Decider(StrEnum):
    """Who decided on a tool call."""

    RULE = "rule"
    """The policy: a rule of it, its default, or a check built into the engine."""
    HUMAN = "human"
    """The one who answered the question, or nobody in time."""
    HOOK = "hook"
    """A hook of the user that tightened what the policy said."""


class DecisionRecord(Record):
    """One decision on a tool call, as the audit keeps it."""

    id: str
    at: datetime
    principal: str
    session_id: str
    turn: int
    tool_use_id: str
    tool: str
    policy: str = Field(description="name of the policy")
    policy_digest: str = Field(description="SHA-256 over all layers that decided")
    request_digest: str = Field(description="SHA-256 over the exact request; the input itself is in the transcript")
    decision: str = Field(description="allow, ask or deny")
    rule: str | None = Field(description="the rule that decided; None: the policy's default")
    because: str
    matched: tuple[str, ...] = Field(description="every rule that applied, as layer:rule")
    rewritten: bool = Field(description="whether the call ran with another input than the agent gave")
    decider: Decider
    decided_by: str | None = Field(default=None, description="the person, or the hook")
    latency_us: int = Field(description="microseconds that the decision took; of a person's, the wait included")
