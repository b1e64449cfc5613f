"""Finds out on whose behalf a request is served.

A transport that authenticates leaves the caller in the request itself, never in a header or a variable of the
process, so that requests which are served side by side cannot take on each other's identity (row P08).
"""

from __future__ import annotations

from typing import Any, Final

from mcp.server.mcpserver import Context

from server.callers import Caller
from server.errors import ErrorCode, RookeryError

SCOPE_KEY: Final = "rookery.caller"
"""Where an HTTP request's ASGI scope holds its :class:`~server.callers.Caller`."""


def caller_of(context: Context[Any, Any] | None, default: Caller | None) -> Caller:
    """The caller of a request.

    Args:
        context: the request; None for a call from within this process.
        default: who it is when the transport carries no identity; None when it must carry one.

    Raises:
        RookeryError: ``internal``: the request should have carried an identity and does not.
    """
    return caller_of_request(None if context is None else context.request_context.request, default)


def caller_of_request(request: object, default: Caller | None) -> Caller:
    """The caller of a request by what its transport attached to it, if anything; see :func:`caller_of`.

    Raises:
        RookeryError: ``internal``, as above.
    """
    found = getattr(request, "scope", {}).get(SCOPE_KEY)
    if isinstance(found, Caller):
        return found
    if default is None:
        raise RookeryError(ErrorCode.INTERNAL, "The request carries no identity, so nothing was done.")
    return default
