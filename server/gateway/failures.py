"""From the gateway's record of failures to the error of a turn.

The record is what classifies: texts and statuses in the CLI's output pass through the sandbox, which can forge them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from server.errors import ErrorCode, RookeryError
from server.gateway.grants import UpstreamFailure
from server.gateway.refusals import Cause
from server.gateway.upstream import CREDENTIAL_VARIABLES

_FINAL: Final = frozenset({Cause.BUDGET, Cause.PRICE, Cause.CREDENTIAL, Cause.LEDGER})
"""Refusals after which nothing in the turn could succeed."""

_CREDIT_WORDS: Final = ("credit balance", "credits", "billing")


def is_credit_exhausted(status: int, error_type: str, message: str) -> bool:
    """Whether the account behind the credential cannot pay: 402, or the 400 that says so in words."""
    if status == 402 or error_type == "billing_error":
        return True
    return status == 400 and any(word in message.lower() for word in _CREDIT_WORDS)


def classify(failures: Sequence[UpstreamFailure]) -> RookeryError | None:
    """The error of a turn that failed, from what the gateway recorded during it; None when it saw no failure.

    A refusal of ours (budget, credential, ledger) decides, because nothing after it could succeed; else the last
    failure does: what went before it was overcome by a retry.

    * 401, 403: ``model_auth_failed``. So is an account without credit (402, or 400 that says so): the remedy is
      the same person's, and it is not the session's own budget.
    * 429: ``model_rate_limited`` · 5xx, 529, unreachable: ``model_unavailable``
    * 404: ``invalid_argument`` naming the model · 402 of ours: ``budget_exceeded``
    * any other 4xx: ``model_unavailable``, not retryable: the API does not take what the CLI sends.
    """
    if not failures:
        return None
    refusals = [failure for failure in failures if failure.refused in _FINAL]
    failure = refusals[-1] if refusals else failures[-1]
    detail = f"status {failure.status}, {failure.error_type}: {failure.message}"
    return _refused(failure, detail) or _failed(failure, detail)


def _refused(failure: UpstreamFailure, detail: str) -> RookeryError | None:
    """The error for a refusal of ours; None for a failure of the upstream."""
    match failure.refused:
        case Cause.CREDENTIAL:
            return no_credential(detail)
        case Cause.LEDGER:
            return RookeryError(
                ErrorCode.STORAGE_UNAVAILABLE,
                "The ledger could not be written, so no further model request is made. Check disk and database.",
                detail=detail,
            )
        case Cause.BUDGET:
            return RookeryError(
                ErrorCode.BUDGET_EXCEEDED,
                f"{failure.message} Files and conversation are intact.",
                detail=detail,
            )
        case Cause.PRICE:
            return RookeryError(ErrorCode.INVALID_ARGUMENT, failure.message, detail=detail)
        case Cause.REQUEST:
            return RookeryError(ErrorCode.POLICY_DENIED, failure.message, detail=detail)
        case Cause.LOAD | Cause.UPSTREAM | None:
            return None


def _failed(failure: UpstreamFailure, detail: str) -> RookeryError:
    wait = f" Try again in {failure.retry_after:g} s." if failure.retry_after else " Try again later."
    if is_credit_exhausted(failure.status, failure.error_type, failure.message):
        return RookeryError(
            ErrorCode.MODEL_AUTH_FAILED,
            "The account behind the model credential has no credit left. Top it up, or set another credential.",
            detail=detail,
        )
    if failure.status in (401, 403):
        return RookeryError(
            ErrorCode.MODEL_AUTH_FAILED,
            f"The model API refused the credential. Check {CREDENTIAL_VARIABLES}, and that it may use this model.",
            detail=detail,
        )
    if failure.status == 404:
        model = f" {failure.model}" if failure.model else ""
        return RookeryError(
            ErrorCode.INVALID_ARGUMENT,
            f"The model API does not know the model{model}, or the credential may not use it: name another model.",
            detail=detail,
        )
    if failure.status == 429 or failure.error_type == "rate_limit_error":
        return RookeryError(
            ErrorCode.MODEL_RATE_LIMITED, f"The model API limits the rate of requests.{wait}", detail=detail
        )
    if 400 <= failure.status < 500:
        return RookeryError(
            ErrorCode.MODEL_UNAVAILABLE,
            "The model API did not accept the agent's request. Check that the model suits this version of the agent; "
            "if the conversation is very long, start a new session.",
            detail=detail,
            retryable=False,
        )
    return RookeryError(
        ErrorCode.MODEL_UNAVAILABLE, f"The model API is overloaded or out of reach.{wait}", detail=detail
    )


def no_credential(detail: str | None = None) -> RookeryError:
    """The error for want of a credential: what to set."""
    return RookeryError(
        ErrorCode.MODEL_AUTH_FAILED,
        f"No model credential is set. Set {CREDENTIAL_VARIABLES} for the server, "
        "or ROOKERY_UPSTREAM=scripted to try without one.",
        detail=detail,
    )
