"""Rookery's own tools in an agent's hands: when an agent is given them, and what proves that it may call one.

The tools themselves are the MCP server's (:mod:`tools.delegation`), restricted to what the agent has spawned
(:mod:`server.offspring`). They are reached over the CLI's control channel, so that an agent needs no network for them.
What comes over that channel is not trusted: a call is carried out only after the permission gate allowed that very
call, and once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from policies import Policy, ToolRequest
from server.models import SessionRecord

SERVER: Final = "rookery"
"""What the CLI knows the MCP server as."""

PREFIX: Final = f"mcp__{SERVER}__"
"""How the names of its tools begin, in policies too."""

SPAWN: Final = f"{PREFIX}spawn_agent"

MAX_ADMITTED: Final = 64
"""Calls that are allowed and have not come yet; beyond that the oldest is forgotten."""


class Admissions:
    """Calls of one agent that its gate has allowed and that have not been carried out yet."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, str] = OrderedDict()

    def admit(self, tool: str, tool_input: Mapping[str, Any], tool_use_id: str) -> None:
        """The gate allows a call; both gates may say so of one call."""
        if not tool.startswith(PREFIX):
            return
        self._open[tool_use_id] = ToolRequest(tool=tool, input=tool_input).digest
        while len(self._open) > MAX_ADMITTED:
            self._open.popitem(last=False)

    def take(self, tool: str, tool_input: Mapping[str, Any]) -> bool:
        """Whether just this call was allowed and did not come before; it is used up by that."""
        digest = ToolRequest(tool=tool, input=tool_input).digest
        for tool_use_id, known in self._open.items():
            if known == digest:
                del self._open[tool_use_id]
                return True
        return False


class Delegation(Protocol):
    """The tools of one agent."""

    @property
    def server(self) -> Any:
        """The in-process MCP server, for the agent SDK."""
        ...

    def bind(self, session: SessionRecord) -> None:
        """Say whose they are. Until then every call is refused."""
        ...


Delegate = Callable[[Admissions], Delegation]
"""Makes the tools of one agent."""


def may_delegate(session: SessionRecord, policy: Policy, *, max_depth: int) -> bool:
    """Whether a session's agent is given the tools: its policy lets it spawn, and it is not nested too deeply."""
    depth = max_depth if policy.limits.depth is None else min(max_depth, policy.limits.depth)
    return len(session.parent_policies or ()) < depth and policy.could_allow(SPAWN)
