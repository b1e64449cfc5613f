"""The closed set of error codes, and the one exception that carries them.

Every failure that a caller may see is a :class:`RookeryError`. Its ``message`` says what to do and is safe to show
to a model or a person; its ``detail`` (paths, upstream texts, causes) goes to the log only.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class ErrorCode(StrEnum):
    """What went wrong, as one word that programs may branch on (DESIGN section 7). Closed: never extend ad hoc."""

    INVALID_ARGUMENT = "invalid_argument"
    SESSION_NOT_FOUND = "session_not_found"
    SESSION_BUSY = "session_busy"
    SESSION_ENDED = "session_ended"
    CHECKPOINT_NOT_FOUND = "checkpoint_not_found"
    APPROVAL_NOT_FOUND = "approval_not_found"
    APPROVAL_EXPIRED = "approval_expired"
    POLICY_DENIED = "policy_denied"
    BUDGET_EXCEEDED = "budget_exceeded"
    TOO_MANY_SESSIONS = "too_many_sessions"
    SANDBOX_UNAVAILABLE = "sandbox_unavailable"
    SANDBOX_LOST = "sandbox_lost"
    AGENT_CRASHED = "agent_crashed"
    MODEL_AUTH_FAILED = "model_auth_failed"
    MODEL_RATE_LIMITED = "model_rate_limited"
    MODEL_UNAVAILABLE = "model_unavailable"
    TIMEOUT = "timeout"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    INTERNAL = "internal"


RETRYABLE: Final = frozenset(
    {
        ErrorCode.SESSION_BUSY,
        ErrorCode.TOO_MANY_SESSIONS,
        ErrorCode.AGENT_CRASHED,
        ErrorCode.MODEL_RATE_LIMITED,
        ErrorCode.MODEL_UNAVAILABLE,
        ErrorCode.TIMEOUT,
        ErrorCode.STORAGE_UNAVAILABLE,
    }
)
"""Codes for which the same call may succeed later without a change by the caller."""


class RookeryError(Exception):
    """A failure with a code of the closed set.

    Args:
        code: what went wrong.
        message: one or two sentences for the caller: what happened and what to do. Never a path, a key or a trace.
        detail: what only the log may hold.
        retryable: whether the same call may succeed later; by default what the code says.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, detail: str | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.detail = detail
        self.retryable = code in RETRYABLE if retryable is None else retryable

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"
