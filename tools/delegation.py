"""Rookery's tools as an agent gets them: fewer, on what it spawned itself, each call only after its gate allowed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, InputRequiredResult

from server.callers import Caller, Scope
from server.delegation import PREFIX, SERVER, Admissions
from server.errors import ErrorCode, RookeryError
from server.models import SessionRecord
from server.offspring import Offspring
from server.registry import Registry as Fleet
from tools import costs, files, sessions, transcripts, undo
from tools.backend import Registry, Sessions
from tools.definition import ToolDefinition
from tools.errors import failure
from tools.tool_server import ToolServer

WITHHELD: Final = frozenset({"fork_session"})
"""Not for agents: a fork has a budget of its own, which nobody would have given."""

TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = tuple(
    tool
    for tools in (sessions.TOOLS, transcripts.TOOLS, costs.TOOLS, files.TOOLS, undo.TOOLS)
    for tool in tools
    if tool.name not in WITHHELD
)
"""Approvals are not among them: questions of a policy go to people."""

INSTRUCTIONS: Final = """\
You can have other agents work for you, each in a sandbox of its own: spawn_agent starts one, wait_for_sessions waits,
read_file and export_changes bring its work. A child knows only its prompt and its workspace, may do no more than you
may, and spends of your budget: give it a part with budget_usd. end_session gives back what it did not spend.
"""

MAX_WAIT_S: Final = 50.0


class AgentTools:
    """A :class:`server.delegation.Delegation`.

    Args:
        registry: gives that of this process.
        admissions: which calls the agent's gate has allowed.
    """

    def __init__(self, registry: Callable[[], Fleet], admissions: Admissions) -> None:
        self._registry = registry
        self.admissions = admissions
        self.session: SessionRecord | None = None
        self._server = _AgentServer(self)

    @property
    def server(self) -> Any:
        """See :class:`server.delegation.Delegation`."""
        return self._server.protocol

    def bind(self, session: SessionRecord) -> None:
        """See :class:`server.delegation.Delegation`."""
        self.session = session

    async def registry(self) -> Registry:
        """See :meth:`tools.backend.Backend.registry`.

        Raises:
            RookeryError: ``policy_denied``: no session has taken the agent yet.
        """
        if self.session is None:
            raise RookeryError(ErrorCode.POLICY_DENIED, "No session has taken this agent yet.")
        offspring: Sessions = Offspring(self._registry(), self.session)
        # It has what the tools above ask for, and nothing else, on purpose.
        return cast(Registry, offspring)


class Delegating:
    """A :data:`server.delegation.Delegate` whose registry is known a moment later than it is itself."""

    def __init__(self) -> None:
        self._registry: Fleet | None = None

    def attach(self, registry: Fleet) -> None:
        """Say which registry the tools ask."""
        self._registry = registry

    def __call__(self, admissions: Admissions) -> AgentTools:
        return AgentTools(self._attached, admissions)

    def _attached(self) -> Fleet:
        if self._registry is None:
            raise RookeryError(ErrorCode.POLICY_DENIED, "The server is still starting.", retryable=True)
        return self._registry


class _AgentServer(ToolServer):
    def __init__(self, tools: AgentTools) -> None:
        super().__init__(
            TOOLS, tools, caller=None, max_wait_s=MAX_WAIT_S, name=SERVER, title="Rookery", instructions=INSTRUCTIONS
        )
        self._tools = tools

    def caller(self, context: Context[Any, Any] | None) -> Caller:
        session = self._tools.session
        if session is None:
            raise RookeryError(ErrorCode.POLICY_DENIED, "No session has taken this agent yet.")
        return Caller(session.principal, frozenset({Scope.READ, Scope.RUN}))

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        if not self._tools.admissions.take(f"{PREFIX}{name}", arguments):
            return failure(RookeryError(ErrorCode.POLICY_DENIED, "The policy has not allowed this call."))
        return await super().call_tool(name, arguments, context)
