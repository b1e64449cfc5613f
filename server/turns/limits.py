"""The limits that a session's policy sets to its turns, looked at again while a turn runs.

A policy whose file was tightened holds for the turn under way too: its time is cut, its session's cap lowered,
and the model has no further turn if it had as many as are allowed.
"""

from __future__ import annotations

from typing import Final

import anyio
import structlog

from policies import Policy
from server.errors import RookeryError
from server.inbox import OpenTurn
from server.models import NANO_USD, SessionRecord
from server.policy_book import tightest, turns_of
from server.services import Services

log = structlog.get_logger(__name__)

POLICY_LOOK_S: Final = 2.0
"""How long a turn of which nothing is heard may go on before its policy is looked at again."""


class TurnLimits:
    """The limits of one session's turns while it is resident.

    Args:
        services: the shared parts.
        policy: what the session works under.

    Attributes:
        policy: the policy as it was when the last turn began.
    """

    def __init__(self, services: Services, policy: Policy) -> None:
        self.policy = policy
        self._services = services
        self._kept: Policy | None = None
        """The policy whose limits the open turn keeps."""

    def begin(self, session: SessionRecord, turn: OpenTurn) -> None:
        """Count a turn's time from here, by the settings and by the policy as it is now."""
        self._kept = None
        try:
            self.policy = self._services.policy_of(session)
        except RookeryError as error:
            log.warning("policy cannot be read; the one at the start holds", error=str(error))
        longest = self._services.settings.turn_timeout_s
        turn.timeout_s = tightest(self.policy.limits.wall, longest) or longest
        turn.deadline = anyio.current_time() + turn.timeout_s

    def next_look(self, turn: OpenTurn) -> float:
        """When to look after the open turn at the latest, on anyio's clock."""
        return min(turn.next_deadline(), anyio.current_time() + POLICY_LOOK_S)

    async def keep(self, session: SessionRecord, turn: OpenTurn) -> SessionRecord:
        """Hold the open turn to the limits of its policy as it is now: one that was tightened holds at once.

        Returns:
            the session, whose cap may have been lowered.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        if turn.stop_deadline is not None:
            return session
        try:
            policy = self._services.policy_of(session)
        except RookeryError:
            # No call and no model request passes meanwhile.
            return session
        if policy is self._kept:
            return session
        self._kept = policy
        longest = tightest(policy.limits.wall, turn.timeout_s) or turn.timeout_s
        turn.deadline -= turn.timeout_s - longest
        turn.timeout_s = longest
        turn.max_turns = turns_of(policy.limits, session.max_turns)
        return await self._lower_cap(session, policy)

    async def _lower_cap(self, session: SessionRecord, policy: Policy) -> SessionRecord:
        """Lower the session's cap to its policy's, where that is lower."""
        if policy.limits.usd is None:
            return session
        cap = round(policy.limits.usd * NANO_USD)
        present = (await self._services.store.session_for_server(session.id)).budget_nano_usd
        if present is not None and present <= cap:
            return session
        return await self._services.store.update_session(session.id, budget_nano_usd=cap)
