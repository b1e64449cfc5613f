"""What a turn does when the model API failed: wait a little and go on by itself, a few times.

The CLI has asked again several times already when a turn ends so. Going on does nothing twice: the conversation holds
the prompt and the results of all tools that ran, and the agent continues from there. Only failures of the model API
are overcome in this way; after a crash of the agent itself its last step may be half done, so its caller decides.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from server.errors import ErrorCode, RookeryError

TRANSIENT: Final = frozenset({ErrorCode.MODEL_UNAVAILABLE, ErrorCode.MODEL_RATE_LIMITED})

FIRST_PAUSE_S: Final = 5.0
"""Before the first attempt; four times as long before each further one."""

LONGEST_PAUSE_S: Final = 120.0
"""A longer pause that the API asks for ends the turn: its caller knows better what to do meanwhile."""

JITTER: Final = 0.25
"""The most that a pause is prolonged by, as a part of it, so that a fleet does not come back at one moment."""

LEAST_LEFT_S: Final = 5.0
"""Time that must be left of the turn after a pause, or the attempt is not worth it."""

CONTINUE_PROMPT: Final = (
    "Continue from where you left off. The model API failed for a while and answers again. What your tools have done "
    "is done, and their results are in this conversation: do not repeat it."
)
"""Sent in the place of the prompt."""


@dataclass(frozen=True)
class Attempt:
    """A further attempt at a turn.

    Args:
        number: which one, from 1.
        most: how many there will be at most.
        pause_s: how long to wait before it.
    """

    number: int
    most: int
    pause_s: float

    def notice(self, failure: RookeryError, now: datetime) -> dict[str, Any]:
        """What the event NOTICE says: why the turn rests, till when, and which attempt follows."""
        until = now + timedelta(seconds=self.pause_s)
        again = f"The turn goes on by itself at {until:%H:%M:%S} UTC (attempt {self.number} of {self.most})."
        return {
            "text": f"{failure.message} {again}",
            "waiting": failure.code.value,
            "waiting_until": until.isoformat(),
            "attempt": self.number,
            "of": self.most,
        }


def next_attempt(
    failure: RookeryError | None,
    *,
    made: int,
    most: int,
    left_s: float,
    retry_after_s: float | None,
    jitter: Callable[[], float] = random.random,
) -> Attempt | None:
    """The next attempt at a turn that failed; None when there is none, and the failure stands.

    Args:
        failure: the gateway's verdict.
        made: further attempts made so far.
        most: how many may be made.
        left_s: what is left of the turn's time.
        retry_after_s: how long the API asked to wait, if it did.
    """
    if failure is None or failure.code not in TRANSIENT or not failure.retryable or made >= most:
        return None
    asked = retry_after_s or 0.0
    if asked > LONGEST_PAUSE_S:
        return None
    pause = max(asked, min(FIRST_PAUSE_S * 4**made, LONGEST_PAUSE_S)) * (1 + JITTER * jitter())
    return Attempt(made + 1, most, pause) if pause + LEAST_LEFT_S < left_s else None
