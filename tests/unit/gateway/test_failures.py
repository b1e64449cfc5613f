"""From recorded failures to a turn's error."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from server.clock import SYSTEM_CLOCK
from server.errors import ErrorCode
from server.gateway.failures import classify
from server.gateway.grants import MAX_FAILURES, GrantTable, UpstreamFailure
from server.gateway.refusals import Cause

AT = datetime(2026, 11, 23, tzinfo=UTC)


def failure(status: int, error_type: str = "api_error", message: str = "", **more: Any) -> UpstreamFailure:
    return UpstreamFailure(status, error_type, message, AT, **more)


@pytest.mark.parametrize(
    ("recorded", "code", "retryable"),
    [
        (failure(401, "authentication_error"), ErrorCode.MODEL_AUTH_FAILED, False),
        (failure(403, "permission_error"), ErrorCode.MODEL_AUTH_FAILED, False),
        (failure(402, "billing_error"), ErrorCode.MODEL_AUTH_FAILED, False),
        (failure(400, "invalid_request_error", "Your credit balance is too low"), ErrorCode.MODEL_AUTH_FAILED, False),
        (failure(400, "invalid_request_error", "messages: bad"), ErrorCode.MODEL_UNAVAILABLE, False),
        (failure(404, "not_found_error", model="claude-x"), ErrorCode.INVALID_ARGUMENT, False),
        (failure(429, "rate_limit_error", retry_after=7), ErrorCode.MODEL_RATE_LIMITED, True),
        (failure(500), ErrorCode.MODEL_UNAVAILABLE, True),
        (failure(529, "overloaded_error"), ErrorCode.MODEL_UNAVAILABLE, True),
        (failure(0), ErrorCode.MODEL_UNAVAILABLE, True),
        (failure(402, "billing_error", refused=Cause.BUDGET), ErrorCode.BUDGET_EXCEEDED, False),
        (failure(402, "billing_error", "no price", refused=Cause.PRICE), ErrorCode.INVALID_ARGUMENT, False),
        (failure(401, "authentication_error", refused=Cause.CREDENTIAL), ErrorCode.MODEL_AUTH_FAILED, False),
        (failure(503, refused=Cause.LEDGER), ErrorCode.STORAGE_UNAVAILABLE, True),
        (failure(403, "permission_error", "no web", refused=Cause.REQUEST), ErrorCode.POLICY_DENIED, False),
        (failure(429, "rate_limit_error", refused=Cause.LOAD), ErrorCode.MODEL_RATE_LIMITED, True),
    ],
)
def test_each_failure_has_its_code(recorded: UpstreamFailure, code: ErrorCode, retryable: bool) -> None:
    error = classify([recorded])
    assert error is not None
    assert (error.code, error.retryable) == (code, retryable)


def test_without_failures_there_is_no_error() -> None:
    assert classify([]) is None


def test_the_last_failure_decides_because_those_before_were_overcome() -> None:
    error = classify([failure(529), failure(401)])
    assert error is not None
    assert error.code is ErrorCode.MODEL_AUTH_FAILED


def test_a_refusal_for_money_decides_whatever_comes_after() -> None:
    error = classify([failure(402, "billing_error", refused=Cause.BUDGET), failure(529)])
    assert error is not None
    assert error.code is ErrorCode.BUDGET_EXCEEDED


def test_messages_name_the_remedy_and_hold_no_text_of_the_upstream() -> None:
    error = classify([failure(401, "authentication_error", "key sk-ant-secret is bad")])
    assert error is not None
    assert "ANTHROPIC_API_KEY" in error.message
    assert "sk-ant" not in error.message
    model = classify([failure(404, "not_found_error", model="claude-x")])
    assert model is not None
    assert "claude-x" in model.message
    wait = classify([failure(429, "rate_limit_error", retry_after=7)])
    assert wait is not None
    assert "7 s" in wait.message


def test_a_success_takes_the_upstreams_failures_away_and_leaves_our_refusals() -> None:
    grant = GrantTable(SYSTEM_CLOCK).open()
    grant.record_failure(failure(529))
    grant.record_failure(failure(402, refused=Cause.BUDGET))
    grant.record_success()
    assert [one.status for one in grant.failures] == [402]


def test_the_record_of_failures_is_bounded() -> None:
    grant = GrantTable(SYSTEM_CLOCK).open()
    for status in range(500, 500 + 2 * MAX_FAILURES):
        grant.record_failure(failure(status))
    assert len(grant.failures) == MAX_FAILURES
    assert grant.failures[-1].status == 500 + 2 * MAX_FAILURES - 1
