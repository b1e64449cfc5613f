"""When a turn goes on by itself, and how long it rests before."""

from __future__ import annotations

import pytest

from server.errors import ErrorCode, RookeryError
from server.turns.retrying import LONGEST_PAUSE_S, Attempt, next_attempt

UNAVAILABLE = RookeryError(ErrorCode.MODEL_UNAVAILABLE, "The model API is overloaded.")


def attempt(failure: RookeryError | None = UNAVAILABLE, **given: float | None) -> Attempt | None:
    values = {"made": 0, "most": 2, "left_s": 3600.0, "retry_after_s": None, "jitter": lambda: 0.0, **given}
    return next_attempt(failure, **values)  # type: ignore[arg-type]  # of values that differ in type


def test_pauses_grow_and_attempts_are_bounded() -> None:
    pauses = [attempt(made=made, most=3) for made in range(4)]
    assert [one.pause_s if one else None for one in pauses] == [5.0, 20.0, 80.0, None]
    assert [one.number for one in pauses if one] == [1, 2, 3]
    assert attempt(most=0) is None


def test_it_rests_as_long_as_the_api_says_unless_that_is_too_long() -> None:
    asked = attempt(retry_after_s=42.0)
    assert asked is not None and asked.pause_s == 42.0
    assert attempt(retry_after_s=LONGEST_PAUSE_S + 1) is None


def test_a_fleet_does_not_come_back_at_one_moment() -> None:
    early, late = attempt(jitter=lambda: 0.0), attempt(jitter=lambda: 1.0)  # type: ignore[arg-type]
    assert early is not None and late is not None and early.pause_s < late.pause_s


def test_no_attempt_is_begun_that_the_turns_time_does_not_allow() -> None:
    assert attempt(left_s=9.0) is None
    assert attempt(left_s=11.0) is not None


@pytest.mark.parametrize("code", sorted(set(ErrorCode) - {ErrorCode.MODEL_UNAVAILABLE, ErrorCode.MODEL_RATE_LIMITED}))
def test_nothing_but_a_failure_of_the_model_api_is_overcome_in_this_way(code: ErrorCode) -> None:
    assert attempt(RookeryError(code, "x", retryable=True)) is None


def test_what_the_api_does_not_take_is_not_sent_again() -> None:
    assert attempt(RookeryError(ErrorCode.MODEL_UNAVAILABLE, "x", retryable=False)) is None
    assert attempt(None) is None
