"""One rate limiter for all agents (issue 5, item 5).

When the model API says that there are too many requests (429) or that it is overloaded (529), every agent hears of it:
requests wait here until the time that it named, with some jitter, and then come back a few at a time, in turn by
session, more with each success. The refused request itself goes back to its agent, which asks again and waits like the
others. Limits hold for one model, so each model has a lane of its own.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import anyio

from server.gateway.refusals import Cause, Refusal

if TYPE_CHECKING:
    from server.clock import Clock
    from server.gateway.grants import Grant

LIMITING: Final = frozenset({429, 529})

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
"""Pauses when the API names none: doubled with each refusal in a row."""

LONGEST_WAIT_S: Final = 60.0
"""Requests wait that long at most; a longer pause is told to the agents at once, so that their turns can end with it
rather than hang. The CLI itself waits ten minutes for an answer to begin."""

JITTER: Final = 0.25
"""The most that a pause is prolonged by, as a part of it."""

RECOVERED: Final = 16
"""With so many requests at a time going well again, a lane is free."""

CONGESTED_S: Final = 5.0
"""A lane that stays shut for longer is congested: who may fall back on another model does not wait for it."""

CONGESTED_REFUSALS: Final = 3
"""So is one that refused so often in a row."""

TOLD_S: Final = 1.0
"""A wait of so long is told to the session."""

MAX_LANES: Final = 256
"""Models that are told apart; more share the lane of unknown ones."""


@dataclass
class Lane:
    """How one model's requests stand. Times are anyio's."""

    closed_until: float = 0.0
    refusals: int = 0
    """In a row."""
    running: int = 0
    room: int | None = None
    """Requests at a time while the lane recovers; None when it is free."""
    waiting: OrderedDict[str, deque[anyio.Event]] = field(default_factory=OrderedDict)
    """Sessions with their waiting requests; the one whose turn it is first."""

    def is_open(self, now: float) -> bool:
        """Whether one more request may go."""
        return now >= self.closed_until and (self.room is None or self.running < self.room)

    def is_congested(self, now: float) -> bool:
        """Whether it is shut for long."""
        pause = self.closed_until - now
        return pause > CONGESTED_S or (pause > 0 and self.refusals >= CONGESTED_REFUSALS)

    def release(self, now: float) -> None:
        """Let go who may, each session in its turn."""
        while self.waiting and self.is_open(now):
            session, events = self.waiting.popitem(last=False)
            self.running += 1
            events.popleft().set()
            if events:
                self.waiting[session] = events

    def refused(self, now: float, pause: float) -> None:
        """The API refused: all wait, and fewer come back."""
        self.refusals += 1
        self.closed_until = max(self.closed_until, now + pause)
        self.room = max(1, self.running // 2)

    def accepted(self) -> None:
        """The API took a request: twice as many may go."""
        self.refusals = 0
        if self.room is not None:
            self.room = None if self.room * 2 >= RECOVERED else self.room * 2


@dataclass(frozen=True)
class Slot:
    """The place of one request in its lane."""

    _lane: Lane
    _jitter: Callable[[], float]

    def answered(self, status: int, retry_after: float | None) -> None:
        """Tell how the API answered."""
        if status in LIMITING:
            pause = retry_after if retry_after else _pause_after(self._lane.refusals)
            self._lane.refused(anyio.current_time(), pause * (1 + JITTER * self._jitter()))
        elif status < 400:
            self._lane.accepted()
            self._lane.release(anyio.current_time())


class FleetLimiter:
    """Lets requests go as the model API can take them.

    Args:
        clock: wall time, for what is shown.
        jitter: gives numbers from 0 to 1.
    """

    def __init__(self, clock: Clock, jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._lanes: dict[str, Lane] = {}

    def is_congested(self, model: str) -> bool:
        """Whether a model takes no requests for some while."""
        return self._lane(model).is_congested(anyio.current_time())

    def tell(self, model: str, grant: Grant) -> None:
        """Show that an agent, whose request was refused, waits by itself until the lane opens."""
        lane = self._lane(model)
        pause = lane.closed_until - anyio.current_time()
        if pause >= TOLD_S:
            self._show(lane, grant, pause)

    def _show(self, lane: Lane, grant: Grant, pause: float) -> None:
        grant.waiting_until = until = self._clock.now() + timedelta(seconds=pause)
        if pause >= TOLD_S:
            text = f"The model API limits requests: the next one is sent at {until:%H:%M:%S} UTC."
            data = {"waiting": "rate_limited", "waiting_until": until.isoformat()}
            grant.say(("rate_limited", lane.closed_until), text, **data)

    def open_again(self, model: str) -> datetime:
        """When a model takes requests again, as far as is known."""
        pause = max(0.0, self._lane(model).closed_until - anyio.current_time())
        return self._clock.now() + timedelta(seconds=pause)

    @asynccontextmanager
    async def slot(self, model: str, grant: Grant) -> AsyncIterator[Slot]:
        """Wait for a place, and hold it while the request runs.

        Raises:
            Refusal: the API named a pause that is too long to wait for.
        """
        lane = self._lane(model)
        await self._enter(lane, grant)
        try:
            yield Slot(lane, self._jitter)
        finally:
            lane.running -= 1
            lane.release(anyio.current_time())

    def _lane(self, model: str) -> Lane:
        key = model if model in self._lanes or len(self._lanes) < MAX_LANES else ""
        return self._lanes.setdefault(key, Lane())

    async def _enter(self, lane: Lane, grant: Grant) -> None:
        now = anyio.current_time()
        grant.waiting_until = None
        if not lane.waiting and lane.is_open(now):
            lane.running += 1
            return
        _check(lane, now, now)
        session = grant.binding.session_id if grant.binding is not None else grant.id
        released, began = anyio.Event(), now
        lane.waiting.setdefault(session, deque()).append(released)
        try:
            while not released.is_set():
                now = anyio.current_time()
                _check(lane, now, began)
                pause = max(0.0, lane.closed_until - now)
                self._show(lane, grant, pause)
                # A lane that is merely full is opened by those that leave it.
                with anyio.move_on_after(pause or LONGEST_WAIT_S):
                    await released.wait()
                lane.release(anyio.current_time())
        except BaseException:
            if released.is_set():
                lane.running -= 1
                lane.release(anyio.current_time())
            else:
                _forget(lane, session, released)
            raise
        finally:
            grant.waiting_until = None


def _pause_after(refusals: int) -> float:
    """The pause after so many refusals in a row. An outage may bring more than a power of two can be had of."""
    return min(FIRST_PAUSE_S * 2.0 ** min(refusals, 32), LONGEST_PAUSE_S)


def _check(lane: Lane, now: float, began: float) -> None:
    pause = lane.closed_until - now
    if pause > LONGEST_WAIT_S:
        message = f"The model API takes no requests for another {pause:.0f} s."
        raise Refusal(429, "rate_limit_error", message, cause=Cause.LOAD, retry_after=round(pause), retry=False)
    if now - began >= LONGEST_WAIT_S:
        message = "The model API recovers from too many requests."
        raise Refusal(429, "rate_limit_error", message, cause=Cause.LOAD, retry_after=FIRST_PAUSE_S)


def _forget(lane: Lane, session: str, released: anyio.Event) -> None:
    events = lane.waiting.get(session)
    if events is not None:
        events.remove(released)
        if not events:
            del lane.waiting[session]
