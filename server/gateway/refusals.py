"""Answers the gateway gives of itself, in the form that the Claude Code CLI takes at once.

Measured with CLI 2.1.330 (DESIGN section 4): a refusal as 400 or 422 is asked six times, as 401 up to ten, and 413
makes the CLI compact its conversation. 402 ``billing_error`` and 403 ``permission_error`` end the turn after one
request with our message verbatim; any status does with ``x-should-retry: false``. So a refusal of ours is 402 for
money, 403 for everything that the sandbox may not do, and never 400 or 413.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Final

JSON: Final = "application/json"


class Cause(StrEnum):
    """Why the gateway refused a request: what the error of a turn is told from."""

    REQUEST = "request"
    """The sandbox asked for what it may not."""
    BUDGET = "budget"
    CREDENTIAL = "credential"
    """There is nothing to pay with."""
    LEDGER = "ledger"
    """What was used before could not be written down."""
    LOAD = "load"
    """Too much at once."""
    PRICE = "price"
    """The model has no known price, but the budget is in dollars."""
    UPSTREAM = "upstream"
    """The upstream's answer was not fit to be passed on."""


class Refusal(Exception):  # noqa: N818 - an answer that travels as an exception, not an error of the program
    """A request that the gateway answers itself instead of forwarding it.

    Args:
        status: HTTP status.
        error_type: the error's type as the Messages API names it.
        message: what the agent and the log may read; never a secret.
        cause: why.
        retry_after: seconds after which a retry makes sense; None says that none does.
        retry: whether the CLI itself should ask again; by default when ``retry_after`` is given.
    """

    def __init__(
        self,
        status: int,
        error_type: str,
        message: str,
        *,
        cause: Cause = Cause.REQUEST,
        retry_after: float | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.status = status
        self.error_type = error_type
        self.message = message
        self.retry_after = retry_after
        self.retry = retry_after is not None if retry is None else retry

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Response headers: whether to retry, and when."""
        headers = [(b"x-should-retry", b"true" if self.retry else b"false")]
        if self.retry_after is not None:
            headers.append((b"retry-after", f"{self.retry_after:g}".encode()))
        return headers

    @property
    def body(self) -> bytes:
        """The error in the form of the Messages API."""
        return error_body(self.error_type, self.message)


def error_body(error_type: str, message: str) -> bytes:
    """An error object of the Messages API as JSON."""
    return json.dumps({"type": "error", "error": {"type": error_type, "message": message}}).encode()


def not_found() -> Refusal:
    """For every path and method that the gateway does not serve (catalogue row X05)."""
    return Refusal(404, "not_found_error", "This gateway serves the model only: /v1/messages and its token counter.")


def unauthorised() -> Refusal:
    """For a token that is missing, unknown or revoked; the three read alike."""
    return Refusal(401, "authentication_error", "This token is not valid here (or no longer is).")


def forbidden(message: str) -> Refusal:
    """For what a sandbox may not ask."""
    return Refusal(403, "permission_error", message)


def too_much(message: str) -> Refusal:
    """For an agent with too much under way; it may ask again."""
    return Refusal(429, "rate_limit_error", message, cause=Cause.LOAD, retry_after=1)


def bad_gateway(message: str, *, retry: bool) -> Refusal:
    """For an upstream that was not reached or answered with what cannot be passed on."""
    return Refusal(502, "api_error", message, cause=Cause.UPSTREAM, retry_after=1 if retry else None)


ERROR_STATUS: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The status that goes with each type of error of the Messages API."""
