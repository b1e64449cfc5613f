"""What reaches a session actor, and what it keeps of the turn under way."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import anyio
from claude_agent_sdk import Message
from opentelemetry.context import Context

from server.errors import RookeryError
from server.models import TurnRecord
from server.permissions.put_off import PutOff
from server.telemetry.turn_span import TurnSpan

_PROMPTS: Final = uuid.UUID("5f7a8c1e-3d0b-4b57-9a52-9a6f3a3a1c5d")


class Leave(StrEnum):
    """Why an actor is asked to go."""

    HIBERNATE = "hibernate"
    END = "end"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True)
class StartTurn:
    """Run this turn, whose row is already in the store."""

    turn: TurnRecord
    resumed: bool = False
    """The turn was put off for an approval: the agent takes it up by itself, without a prompt."""
    trace: Context | None = None
    """The trace of the call that asked for it."""
    heard: int = 0
    """How far the agent's output is in the store already, when the agent outlived the server that had started it."""


@dataclass(frozen=True)
class Interrupt:
    """Stop the present turn."""


@dataclass(frozen=True)
class GoAway:
    """Stop the present turn, if any, and leave."""

    why: Leave


@dataclass(frozen=True)
class AgentSaid:
    """A message of the agent."""

    message: Message


@dataclass(frozen=True)
class AgentLeft:
    """The agent's process is gone; the error tells how, None for an orderly end."""

    error: Exception | None


@dataclass(frozen=True)
class Overspent:
    """What the sandbox costs has used up the session's budget: the present turn must stop."""


@dataclass(frozen=True)
class GatewaySaid:
    """Something about the agent's model requests that belongs into the session's log."""

    data: Mapping[str, Any]


Item = StartTurn | Interrupt | GoAway | AgentSaid | AgentLeft | Overspent | GatewaySaid


def message_id_of(turn: TurnRecord) -> str:
    """Names the turn's prompt, the same in every server: one that takes the agent over knows whether it was sent."""
    return str(uuid.uuid5(_PROMPTS, f"{turn.session_id} {turn.number} {turn.started_at.isoformat()}"))


@dataclass
class OpenTurn:
    """The turn under way and what the host did to it."""

    record: TurnRecord
    span: TurnSpan
    resumed: bool = False
    """Taken up again after an approval: the agent needs no prompt."""
    put_off: PutOff | None = None
    """What the agent does first, where calls of it were put off."""
    leftover: bool = False
    """A call that an earlier turn put off comes again before the prompt is answered, and has a result of its own."""
    message_id: str = ""
    """Names the prompt; the result that answers it names it again."""
    prompted: bool = False
    """The agent has been asked, so that a result is owed."""
    interrupted: bool = False
    called_off: anyio.Event = field(default_factory=anyio.Event)
    """Interrupted before its agent was there."""
    timed_out: bool = False
    overspent: bool = False
    out_of_turns: bool = False
    """Stopped because the model has had all the turns that the policy allows by now."""
    max_turns: int | None = None
    """How many turns the model may have, by the policy as it is now."""
    timeout_s: float = 0.0
    """How long the turn may take."""
    deadline: float = 0.0
    """When the turn has taken too long."""
    stop_deadline: float | None = None
    """When an agent that was asked to stop is killed; no other deadline counts then."""
    attempts: int = 0
    """How often it went on by itself after the model API had failed."""
    retry_at: float | None = None
    """When it goes on again; till then it rests."""
    settle_deadline: float | None = None
    """When what should follow the result (idleness, the end of background tasks) is overdue."""
    crash: RookeryError | None = None
    """Why there will be no result."""

    def call_off(self) -> None:
        """Interrupt it before it has begun."""
        self.interrupted = True
        self.called_off.set()

    @property
    def holds_the_model(self) -> bool:
        """Whether the model is not to be asked, because further calls wait for their answers or their turn."""
        return self.put_off is not None and self.put_off.others

    @property
    def stopped(self) -> bool:
        """Whether the host has asked the agent to stop."""
        return self.interrupted or self.timed_out or self.overspent or self.out_of_turns

    def next_deadline(self) -> float:
        """The earliest deadline, on anyio's clock."""
        if self.stop_deadline is not None:
            return self.stop_deadline
        return min(one for one in (self.deadline, self.settle_deadline, self.retry_at) if one is not None)
