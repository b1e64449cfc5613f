"""What the scripted model plays: steps, and how they fall into messages.

A scenario is a list of steps in the order in which they happen. Steps gather into messages: a message ends after a
tool call (the agent must answer first), at a ``stop_reason``, at a failure, and at the end. Each step has one of
these keys; the others in its row go with it:

============== ==========================================================================================
``text``       words; ``token_delay_s`` streams them one by one
``thinking``   thoughts; ``token_delay_s`` likewise
``tool``       a tool call with ``input``; ``parallel`` puts it into one message with the call before it
``structured`` the answer in the form of the output schema, given by the StructuredOutput tool
``reply_with`` text made of the request: see :class:`Echo`
``delay_s``    silence; as the first step of a message it comes before the response begins
``usage``      the message's figures as they are to be sent, null for none; stands before its tool call
``stop_reason`` ends the message with this reason
``error``      an HTTP status instead of a message; with ``error_type``, ``message``, ``retry_after``,
               ``should_retry``, ``times`` (how many attempts fail; without it, all do)
``cut``        true: the connection breaks after what the message held so far; ``times``
``error_event`` an error of this type in the midst of the stream; ``message``, ``times``
============== ==========================================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.errors import ErrorCode, RookeryError

MARKER: Final = "scenario:"
"""Introduces a scenario in a prompt, as JSON."""

_ACTIONS: Final = (
    "text",
    "thinking",
    "tool",
    "structured",
    "reply_with",
    "delay_s",
    "usage",
    "stop_reason",
    "error",
    "cut",
    "error_event",
)


class Echo(StrEnum):
    """What of a request a reply can be made of, so that a test can prove what reached the model."""

    LAST_TOOL_RESULT = "last_tool_result"
    TOOL_RESULTS = "tool_results"
    """All since the prompt, one a line."""
    PROMPT = "prompt"
    CONVERSATION = "conversation"
    """Every text of user and assistant, one a line with its role: proves what a resume or fork carried over."""
    TOOLS = "tools"
    """Names of the tools offered, separated by blanks."""
    REMINDERS = "reminders"
    """What the host and the CLI told the model beside the prompts, in the whole conversation."""
    SYSTEM = "system"
    MODEL = "model"


class Step(BaseModel):
    """One step, as the module describes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str | None = None
    thinking: str | None = None
    tool: str | None = None
    input: dict[str, Any] = Field(default_factory=dict)
    parallel: bool = False
    structured: Any = None
    reply_with: Echo | None = None
    delay_s: float | None = Field(default=None, ge=0, le=3600)
    token_delay_s: float = Field(default=0.0, ge=0, le=60)
    usage: dict[str, Any] | None = None
    stop_reason: str | None = None
    error: int | None = Field(default=None, ge=400, le=599)
    error_type: str | None = None
    message: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None
    times: int | None = Field(default=None, ge=0)
    cut: bool | None = None
    error_event: str | None = None

    @model_validator(mode="after")
    def _one_action(self) -> Self:
        actions = [name for name in _ACTIONS if name in self.model_fields_set]
        if len(actions) != 1:
            raise ValueError(f"a step does exactly one of {', '.join(_ACTIONS)}")
        return self

    @property
    def action(self) -> str:
        """Which key makes the step."""
        return next(name for name in _ACTIONS if name in self.model_fields_set)


@dataclass
class Message:
    """One answer of the model: what it says and calls, or how it fails."""

    steps: list[Step] = field(default_factory=list)
    """Content and silences in order."""
    usage: dict[str, Any] | None = None
    """Figures to send; None: true ones. An empty one: none."""
    stop_reason: str | None = None
    failure: Step | None = None

    @property
    def calls_tools(self) -> bool:
        """Whether the agent answers it."""
        return any(step.action in ("tool", "structured") for step in self.steps)

    @property
    def is_empty(self) -> bool:
        """Nothing stands in it yet."""
        return not self.steps and self.usage is None


def messages_of(steps: Sequence[Step]) -> list[Message]:
    """The messages that the steps fall into."""
    messages: list[Message] = []
    current = Message()

    def close() -> None:
        nonlocal current
        if not current.is_empty or current.failure is not None or current.stop_reason is not None:
            messages.append(current)
        current = Message()

    for step in steps:
        match step.action:
            case "usage":
                if current.calls_tools:
                    close()
                current.usage = step.usage if step.usage is not None else {}
            case "stop_reason":
                current.stop_reason = step.stop_reason
                close()
            case "error":
                close()
                current.failure = step
                close()
            case "cut" | "error_event":
                current.failure = step
                close()
            case _ if step.parallel:
                current.steps.append(step)
            case _:
                if current.calls_tools:
                    close()
                current.steps.append(step)
    close()
    return messages


class Turn(BaseModel):
    """What to play for prompts of one kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: str | None = Field(default=None, description="words the prompt holds, in any case")
    regex: str | None = Field(default=None, description="regular expression found in the prompt")
    steps: tuple[Step, ...]

    def fits(self, prompt: str) -> bool:
        """Whether it is for this prompt; without a condition it is for any."""
        if self.match is not None and self.match.casefold() not in prompt.casefold():
            return False
        return self.regex is None or re.search(self.regex, prompt) is not None


class Scenario(BaseModel):
    """A scenario file (``ROOKERY_SCENARIO``): the first turn that fits a prompt is played."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    turns: tuple[Turn, ...]

    def steps_for(self, prompt: str) -> tuple[Step, ...] | None:
        """The steps for a prompt; None when no turn fits."""
        return next((turn.steps for turn in self.turns if turn.fits(prompt)), None)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a scenario file.

        Raises:
            RookeryError: ``invalid_argument``: it cannot be read, or is not a scenario.
        """
        try:
            scenario = cls.model_validate_json(path.read_bytes())
            for turn in scenario.turns:
                re.compile(turn.regex or "")
        except OSError as error:
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT, "ROOKERY_SCENARIO cannot be read: name a JSON file.", detail=repr(error)
            ) from error
        except (ValidationError, re.error) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT, f"ROOKERY_SCENARIO is not a scenario: {reason}.", detail=str(error)
            ) from error
        return scenario


def prompt_with(steps: Sequence[Any], text: str = "") -> str:
    """A prompt that carries its scenario.

    Args:
        steps: the steps as plain data.
        text: what else the prompt says.

    Raises:
        pydantic.ValidationError: a step is none.
    """
    for step in steps:
        Step.model_validate(step)
    return f"{text}\n{MARKER} {json.dumps(list(steps))}".lstrip()


def steps_in(prompt: str) -> tuple[Step, ...] | None:
    """The steps that a prompt carries; None when it carries none.

    Raises:
        ValueError: what follows the marker is no scenario; says why.
    """
    _, marker, rest = prompt.partition(MARKER)
    if not marker:
        return None
    try:
        steps, _ = json.JSONDecoder().raw_decode(rest.lstrip())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(steps, list):
        raise ValueError("not a list of steps")
    return tuple(Step.model_validate(step) for step in steps)
