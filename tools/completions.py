"""Completions: session ids and names of policies, for people who type an address or fill in a prompt."""

from __future__ import annotations

from typing import Any, Final

from mcp.server.context import ServerRequestContext
from mcp_types import CompleteRequestParams, CompleteResult, Completion

from server.callers import Scope
from server.requests import ListRequest
from tools.backend import Registry
from tools.errors import as_rookery_error
from tools.tool_server import ToolServer

MOST: Final = 100
"""Values that the protocol lets one answer hold."""

_LOOKED_AT: Final = 200
"""Newest sessions among which is looked."""


def add_completions(server: ToolServer) -> None:
    """Publish them. Nothing is offered where nothing is known; a failure offers nothing either."""

    async def complete(context: ServerRequestContext[Any, Any], params: CompleteRequestParams) -> CompleteResult:
        name, typed = params.argument.name, params.argument.value
        try:
            principal = server.allowed(context, Scope.READ).principal
            registry = await server.backend.registry()
            if name == "session_id":
                found = await _sessions(registry, principal, typed)
            elif name == "policy":
                found = [policy for policy in await registry.policy_names() if policy.startswith(typed)]
            else:
                found = []
        except Exception as error:
            as_rookery_error(error, where="completion")
            found = []
        return CompleteResult(completion=Completion(values=found[:MOST], total=len(found), has_more=len(found) > MOST))

    # The SDK's own decorator hands over no request, and so no caller.
    server.protocol.add_request_handler("completion/complete", CompleteRequestParams, complete)


async def _sessions(registry: Registry, principal: str, typed: str) -> list[str]:
    """Sessions whose id begins with what was typed, else those whose title holds it; newest first."""
    page = await registry.list(principal, ListRequest(limit=_LOOKED_AT))
    by_id = [one.session_id for one in page.sessions if one.session_id.startswith(typed.lower())]
    return by_id or [one.session_id for one in page.sessions if typed.lower() in one.title.lower()]
