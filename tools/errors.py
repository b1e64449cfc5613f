"""The one place where failures become answers: ``is_error``, text that begins with the code, and structured fields."""

from __future__ import annotations

import logging

from mcp_types import CallToolResult, TextContent

from server.errors import ErrorCode, RookeryError
from server.models import Failure

logger = logging.getLogger(__name__)


def as_rookery_error(error: Exception, *, where: str) -> RookeryError:
    """The error a caller may see for ``error``; what is not ours is logged with its trace and hidden.

    Args:
        error: what was raised.
        where: the tool or resource, for the log.
    """
    if isinstance(error, RookeryError):
        logger.info("%s answered %s", where, error.code.value, extra={"detail": error.detail})
        return error
    logger.error("%s failed unexpectedly", where, exc_info=error)
    return RookeryError(
        ErrorCode.INTERNAL,
        "Rookery failed in a way that it did not foresee; the call may not have had its effect. "
        "Look at the session with get_session before you repeat it; the server's log holds the details.",
    )


def failure(error: RookeryError) -> CallToolResult:
    """The answer of a tool call that failed."""
    return CallToolResult(
        content=[TextContent(type="text", text=str(error))],
        structured_content=Failure.of(error).model_dump(mode="json"),
        is_error=True,
    )
