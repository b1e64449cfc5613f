"""Who decides on a session's tool calls: the policy engine, with every denial counted and written down."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path
from typing import Final

from policies import Decision, Effect, Facts, Policy, ToolRequest, ToolUse, decide
from policies.types import LinkLookup
from server.agent.permissions import Verdict
from server.approvals import ApprovalDesk
from server.changes import Changes
from server.files import workspace_links
from server.models import EventKind, SessionRecord
from server.services import Services
from server.turns import bounded

MAX_HISTORY: Final = 10_000
"""Calls remembered for conditions on state."""


class SessionAuthority:
    """Implements :class:`server.agent.permissions.PermissionAuthority` for one session."""

    def __init__(self, services: Services, session: SessionRecord, policy: Policy, changes: Changes) -> None:
        self._store = services.store
        self._clock = services.clock
        self._session_id = session.id
        self._policy = policy
        self._turn = session.turn
        self._denied: Counter[str] = Counter()
        self._admitted: set[str] = set()
        self._history: deque[ToolUse] = deque(maxlen=MAX_HISTORY)
        self._desk = ApprovalDesk(services, session, changes)
        self._links: LinkLookup = {}

    def look_at(self, workspace: Path | None) -> None:
        """Where the workspace lies on this host, so that links in it are seen as the sandbox sees them."""
        self._links = {} if workspace is None else workspace_links(workspace)

    @property
    def denials(self) -> int:
        """Calls denied in the present turn, each counted once."""
        return len(self._denied)

    def begin(self, turn: int) -> None:
        """A turn begins."""
        self._turn = turn
        self._denied.clear()
        self._admitted.clear()

    async def judge(self, request: ToolRequest, tool_use_id: str) -> Decision:
        """Decide by the policy; a denial becomes an event, once for each call."""
        facts = Facts(
            links=self._links, history=tuple(self._history), now=self._clock.now().timestamp(), turn=self._turn
        )
        decision = decide(request, self._policy, facts)
        if decision.effect is Effect.DENY:
            await self._deny(request, tool_use_id, decision.because, decision.rule)
        elif tool_use_id not in self._admitted:
            self._admitted.add(tool_use_id)
            self._history.append(ToolUse(request.tool, facts.now, self._turn))
        return decision

    async def ask(self, request: ToolRequest, tool_use_id: str, decision: Decision) -> Verdict:
        """Put the call to a person; a denial by them, or by time, is counted like any other."""
        verdict = await self._desk.ask(request, tool_use_id, decision, self._turn)
        if verdict.effect is Effect.DENY:
            await self._deny(request, tool_use_id, verdict.because, decision.rule)
        return verdict

    async def _deny(self, request: ToolRequest, tool_use_id: str, because: str, rule: str | None) -> None:
        self._denied[tool_use_id] += 1
        if self._denied[tool_use_id] > 1:
            return
        data = {"id": tool_use_id, "tool": bounded(request.tool, 200), "because": because, "rule": rule}
        await self._store.append_events(self._session_id, self._turn, [(EventKind.DENIAL, data)])
