"""What goes wrong with E2B, in Rookery's closed set of codes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.errors import ErrorCode, RookeryError


@asynccontextmanager
async def translated(doing: str, *, creating: bool = False) -> AsyncIterator[None]:
    """Raise what the SDK raises inside as a :class:`RookeryError`.

    Args:
        doing: what was tried, for the message: ``"create a sandbox"``.
        creating: there was no sandbox yet, so one that is not found is not lost.
    """
    try:
        yield
    except RookeryError:
        raise
    except Exception as error:
        raise failure_of(error, doing, creating=creating) from error


def failure_of(error: Exception, doing: str, *, creating: bool = False) -> RookeryError:
    """An SDK's exception as ours. The SDK's text goes to the log only."""
    from e2b import exceptions as sdk

    detail = f"{type(error).__name__}: {error}"[:2000]

    def unavailable(message: str, *, retryable: bool) -> RookeryError:
        return RookeryError(ErrorCode.SANDBOX_UNAVAILABLE, message, detail=detail, retryable=retryable)

    match error:
        case sdk.AuthenticationException():
            return unavailable("E2B refuses the key: check E2B_API_KEY.", retryable=False)
        case sdk.SandboxNotRunningException() | sdk.NotFoundException() if not creating:
            return RookeryError(
                ErrorCode.SANDBOX_LOST, "The sandbox is gone: E2B knows it no more.", detail=detail, retryable=False
            )
        case sdk.NotFoundException():
            return unavailable(
                "E2B has no such template: run `rookery e2b build`, or set ROOKERY_E2B_TEMPLATE to one that exists.",
                retryable=False,
            )
        case sdk.RateLimitException():
            return unavailable(
                f"E2B's limits do not let us {doing} now: the plan bounds sandboxes at once and creations per second. "
                "Try again in a moment, end sessions that are not needed, or set ROOKERY_E2B_CONCURRENCY to what the "
                "plan allows so that Rookery queues by itself.",
                retryable=True,
            )
        case sdk.ServiceBusyException():
            return unavailable(f"E2B has no room to {doing} at the moment. Try again shortly.", retryable=True)
        case sdk.NotEnoughSpaceException():
            return RookeryError(
                ErrorCode.STORAGE_UNAVAILABLE, "The sandbox's disk is full.", detail=detail, retryable=False
            )
        case sdk.TemplateException():
            return unavailable("The template is too old: run `rookery e2b build` again.", retryable=False)
        case sdk.SandboxException(status_code=status) if status in (400, 403, 404, 422):
            message = (
                f"E2B refuses to {doing}: look at the template's name, and at ROOKERY_E2B_TIMEOUT_S, which must not be "
                "longer than the plan lets a sandbox run (1 h or 24 h)."
            )
            if status == 404 and creating:
                message = "E2B has no such template: run `rookery e2b build`, or set ROOKERY_E2B_TEMPLATE."
            return unavailable(message, retryable=False)
        case json.JSONDecodeError():
            return unavailable(f"E2B answered nonsense when we tried to {doing}. Try again.", retryable=True)
        case _:
            return unavailable(f"E2B did not {doing}. Try again; `rookery doctor` checks the account.", retryable=True)
