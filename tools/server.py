"""Builds the MCP server: all tools, resources and prompts over one backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Final

from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.request_state import RequestStateSecurity
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_REQUEST

from server.callers import LOCAL, Caller, Scope
from server.errors import ErrorCode, RookeryError
from tools.backend import Backend
from tools.completions import add_completions
from tools.definition import ToolDefinition
from tools.prompts import add_prompts
from tools.resources import add_resources
from tools.showing import Showing
from tools.subscriptions import Subscriptions
from tools.tasks import TasksExtension
from tools.tool_server import ToolServer
from tools.toolsets import TOOLS
from tools.turn_tasks import TurnTasks

STATE_TTL_S: Final = 3_600.0
"""How long a person may take for one round of questions, before the call must be made afresh."""


def build_server(
    backend: Backend,
    *,
    max_wait_s: float = 50.0,
    caller: Caller | None = LOCAL,
    tools: Sequence[ToolDefinition[Any, Any]] = TOOLS,
    read_only: bool = False,
    state_key: bytes | None = None,
    on_failure: Callable[[ErrorCode], None] | None = None,
) -> ToolServer:
    """The MCP server, for any transport and both protocol eras.

    Args:
        backend: where the registry comes from; asked at the first call that needs it.
        max_wait_s: longest wait inside one tool call, in seconds.
        caller: whose sessions these are when a request carries no identity; None when each must carry one.
        tools: what is offered.
        read_only: whether nothing may be changed through it; then ``tools`` must hold none that does.
        state_key: at least 32 secret bytes that seal the state of calls which ask the user, the same in every process
            of a home; without it such a call does not outlive this process.
        on_failure: told the code of each call that is answered with an error.
    """
    tasks = TasksExtension()
    subscriptions = Subscriptions(backend, lambda context: reading(server, context))
    server = ToolServer(
        tools,
        backend,
        tasks=tasks,
        subscriptions=subscriptions,
        caller=caller,
        max_wait_s=max_wait_s,
        on_failure=on_failure,
        read_only=read_only,
        name="rookery",
        title="Rookery",
        description="Sandboxed Claude agents as tools.",
        version=version("rookery"),
        request_state_security=(
            RequestStateSecurity.ephemeral(ttl=STATE_TTL_S)
            if state_key is None
            else RequestStateSecurity(keys=[state_key], ttl=STATE_TTL_S)
        ),
        # What one caller is shown is not for another; the SDK takes the rest for private by itself.
        cache_hints={"tools/list": CacheHint(ttl_ms=60_000, scope="private")},
    )
    tasks.sources.append(TurnTasks(server))
    add_resources(server)
    add_prompts(server)
    add_completions(server)
    server.middleware.append(Showing(server))
    return server


def reading(server: ToolServer, context: ServerRequestContext[Any, Any]) -> str:
    """The principal of a request that reads.

    Raises:
        MCPError: it may not.
    """
    try:
        return server.allowed(context, Scope.READ).principal
    except RookeryError as error:
        raise MCPError(code=INVALID_REQUEST, message=str(error)) from error
