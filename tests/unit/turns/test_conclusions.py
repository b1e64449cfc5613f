"""Why a turn stopped is read from typed facts, never from the agent's words."""

from __future__ import annotations

from typing import Any

import pytest
from claude_agent_sdk import ResultMessage

from server.errors import ErrorCode, RookeryError
from server.models import StopReason
from server.turns.conclusions import Circumstances, conclude, is_foreseen


def result(**given: Any) -> ResultMessage:
    fields: dict[str, Any] = {
        "subtype": "success",
        "duration_ms": 1,
        "duration_api_ms": 1,
        "is_error": False,
        "num_turns": 1,
        "session_id": "s",
        "terminal_reason": "completed",
    }
    return ResultMessage(**{**fields, **given})


OVER_BUDGET = RookeryError(ErrorCode.BUDGET_EXCEEDED, "over")
LIMITED = RookeryError(ErrorCode.MODEL_RATE_LIMITED, "slow down")


@pytest.mark.parametrize(
    ("given", "known", "reason", "code"),
    [
        (result(), Circumstances(), StopReason.END_TURN, None),
        (result(is_error=True), Circumstances(upstream=LIMITED), StopReason.ERROR, ErrorCode.MODEL_RATE_LIMITED),
        (
            result(is_error=True, terminal_reason="model_error"),
            Circumstances(upstream=OVER_BUDGET),
            StopReason.BUDGET_EXCEEDED,
            ErrorCode.BUDGET_EXCEEDED,
        ),
        (result(terminal_reason="aborted_tools"), Circumstances(out_of_turns=True), StopReason.MAX_TURNS, None),
        (result(), Circumstances(out_of_turns=True), StopReason.END_TURN, None),
        (result(result="over budget!"), Circumstances(), StopReason.END_TURN, None),
        (result(), Circumstances(upstream=LIMITED), StopReason.END_TURN, None),
        (
            result(subtype="error_during_execution", is_error=True, terminal_reason="aborted_streaming"),
            Circumstances(),
            StopReason.INTERRUPTED,
            None,
        ),
        (
            result(subtype="error_during_execution", is_error=True, terminal_reason="aborted_tools"),
            Circumstances(interrupted=True, timed_out=True, timeout_s=3),
            StopReason.TIMEOUT,
            ErrorCode.TIMEOUT,
        ),
        (None, Circumstances(interrupted=True), StopReason.INTERRUPTED, None),
        (result(), Circumstances(interrupted=True), StopReason.END_TURN, None),
        (result(terminal_reason="tool_deferred"), Circumstances(), StopReason.AWAITING_APPROVAL, None),
        (result(subtype="error_max_turns", is_error=True), Circumstances(), StopReason.MAX_TURNS, None),
        (result(stop_reason="refusal"), Circumstances(), StopReason.REFUSED, None),
        (None, Circumstances(), StopReason.ERROR, ErrorCode.AGENT_CRASHED),
        (None, Circumstances(crash=LIMITED), StopReason.ERROR, ErrorCode.MODEL_RATE_LIMITED),
        (result(is_error=True), Circumstances(), StopReason.ERROR, ErrorCode.AGENT_CRASHED),
        (result(), Circumstances(schema_asked=True), StopReason.ERROR, ErrorCode.INTERNAL),
        (result(structured_output={}), Circumstances(schema_asked=True), StopReason.END_TURN, None),
    ],
)
def test_a_turn_has_one_closed_reason(
    given: ResultMessage | None, known: Circumstances, reason: StopReason, code: ErrorCode | None
) -> None:
    ending = conclude(given, known)
    assert ending.stop_reason is reason
    assert (ending.error.code if ending.error else None) is code


@pytest.mark.parametrize(
    ("error", "foreseen"),
    [
        (LIMITED, True),
        (ExceptionGroup("two", [LIMITED, ExceptionGroup("one", [OVER_BUDGET])]), True),
        (ExceptionGroup("two", [LIMITED, KeyError("ours")]), False),
        (RookeryError(ErrorCode.INTERNAL, "ours"), False),
        (TimeoutError(), False),
    ],
)
def test_a_fault_of_our_own_is_never_taken_for_one_of_the_cloud(error: Exception, foreseen: bool) -> None:
    assert is_foreseen(error) is foreseen
