"""Who decides on a session's tool calls: the policy engine, with every denial counted and written down."""

from __future__ import annotations

from collections import Counter

import structlog

from policies import Decision, Effect, Facts, Policy, ToolRequest, decide
from server.agent.permissions import Verdict
from server.models import EventKind, SessionRecord
from server.store import Store
from server.turns import bounded

log = structlog.get_logger(__name__)


class SessionAuthority:
    """Implements :class:`server.agent.permissions.PermissionAuthority` for one session."""

    def __init__(self, store: Store, session: SessionRecord, policy: Policy) -> None:
        self._store = store
        self._session_id = session.id
        self._policy = policy
        self._turn = session.turn
        self._denied: Counter[str] = Counter()

    @property
    def denials(self) -> int:
        """Calls denied in the present turn, each counted once."""
        return len(self._denied)

    def begin(self, turn: int) -> None:
        """A turn begins."""
        self._turn = turn
        self._denied.clear()

    async def judge(self, request: ToolRequest, tool_use_id: str) -> Decision:
        """Decide by the policy; a denial becomes an event, once for each call."""
        decision = decide(request, self._policy, Facts())
        if decision.effect is Effect.DENY:
            await self._deny(request, tool_use_id, decision.because, decision.rule)
        return decision

    async def ask(self, request: ToolRequest, tool_use_id: str, decision: Decision) -> Verdict:
        """Nobody can be asked yet: the call is denied, and says so."""
        because = f"{decision.because} This policy wants a person to be asked, and nobody can answer here."
        await self._deny(request, tool_use_id, because, decision.rule)
        return Verdict(Effect.DENY, because)

    async def _deny(self, request: ToolRequest, tool_use_id: str, because: str, rule: str | None) -> None:
        self._denied[tool_use_id] += 1
        if self._denied[tool_use_id] > 1:
            return
        data = {"id": tool_use_id, "tool": bounded(request.tool, 200), "because": because, "rule": rule}
        await self._store.append_events(self._session_id, self._turn, [(EventKind.DENIAL, data)])
