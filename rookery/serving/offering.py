"""The MCP server as the settings have it: which tools, how long they wait, and who calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rookery.state_key import state_key
from server.callers import LOCAL, Caller
from server.errors import ErrorCode
from tools.backend import Backend
from tools.definition import ToolDefinition, ToolServer
from tools.server import build_server
from tools.toolsets import tools_of

if TYPE_CHECKING:
    from server.settings import Settings


def server_for(
    settings: Settings,
    backend: Backend,
    *,
    caller: Caller | None = LOCAL,
    tools: Sequence[ToolDefinition[Any, Any]] | None = None,
    on_failure: Callable[[ErrorCode], None] | None = None,
) -> ToolServer:
    """The MCP server of a process.

    Args:
        caller: who calls when a request carries no identity; None when each must carry one.
        tools: what is offered, instead of what the settings say.
        on_failure: told the code of each call that fails.

    Raises:
        RookeryError: ``invalid_argument``: the settings name an unknown toolset.
    """
    offered = tools_of(settings.toolsets, read_only=settings.read_only) if tools is None else tools
    return build_server(
        backend,
        max_wait_s=settings.max_wait_s,
        caller=caller,
        tools=offered,
        read_only=settings.read_only,
        state_key=state_key(settings.home),
        on_failure=on_failure,
    )
