"""The MCP server as the settings have it: which tools, how long they wait, and who calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rookery.state_key import state_key
from server.callers import LOCAL, Caller
from server.errors import ErrorCode, RookeryError
from server.settings import Settings, split_names
from tools.backend import Backend
from tools.definition import ToolDefinition
from tools.server import build_server
from tools.tool_server import ToolServer
from tools.toolsets import tools_of


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


def offered(settings: Settings, variables: Mapping[str, str]) -> Settings:
    """The settings for a client that says by its own environment which tools it wants.

    Args:
        settings: everyone's.
        variables: the client's ``ROOKERY_TOOLSETS`` and ``ROOKERY_READ_ONLY``, as far as it has them.

    Raises:
        RookeryError: ``invalid_argument``: they mean nothing.
    """
    fields = Settings.model_fields
    toolsets, read_only = fields["toolsets"].default, fields["read_only"].default
    if "ROOKERY_TOOLSETS" in variables:
        toolsets = split_names(variables["ROOKERY_TOOLSETS"])
    if "ROOKERY_READ_ONLY" in variables:
        try:
            read_only = TypeAdapter(bool).validate_python(variables["ROOKERY_READ_ONLY"])
        except ValidationError:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "ROOKERY_READ_ONLY: must be true or false.") from None
    tools_of(toolsets, read_only=read_only)
    return settings.model_copy(update={"toolsets": toolsets, "read_only": read_only})
