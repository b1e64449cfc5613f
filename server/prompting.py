"""Giving a session that this process may act for its next prompt."""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from policies import Policy
from server.direct import is_direct
from server.errors import ErrorCode, RookeryError
from server.fleet import Fleet
from server.hooks import Subject, UserPromptSubmit
from server.janitor import Janitor
from server.kinship import room_beside_siblings
from server.models import NANO_USD, SessionRecord, TurnRecord
from server.policy_book import check_model, tightest
from server.requests import PromptRequest
from server.services import Services


class Prompting:
    """Starts turns of sessions that exist."""

    def __init__(self, services: Services, fleet: Fleet, janitor: Janitor) -> None:
        self._services = services
        self._fleet = fleet
        self._janitor = janitor

    async def begin(self, session: SessionRecord, request: PromptRequest) -> int:
        """Start the session's next turn; its number. The caller holds the session's lock.

        Raises:
            RookeryError: see :meth:`server.registry.Registry.prompt`.
        """
        services = self._services
        if request.request_id is not None:
            known = await services.store.turn_by_request(session.id, request.request_id)
            if known is not None:
                return known.number
        # A server that died may have left it at work since the janitor's last look.
        await self._janitor.reconcile_session(await services.store.session_for_server(session.id))
        policy = services.policy_of(session)
        check_model(policy, session.model)
        if not is_direct(services, session):
            services.gateway.require_credential()
        caps = await self._new_caps(session, request, policy)
        await screen(services, session, session.turn + 1, request.prompt)
        async with self._fleet.place(session.principal):
            return await self._begun(session, request, policy, caps)

    async def _begun(
        self, session: SessionRecord, request: PromptRequest, policy: Policy, caps: Mapping[str, int]
    ) -> int:
        """Start the next turn of a session that has a place; its number."""
        services = self._services
        if session.id not in self._fleet.actors:
            await self._fleet.make_room()
        siblings = await room_beside_siblings(services, session)
        record = TurnRecord(
            session_id=session.id,
            number=0,
            prompt=request.prompt,
            request_id=request.request_id,
            started_at=services.clock.now(),
        )
        # From the row on, the turn must get its actor, whatever becomes of the one who asked.
        with anyio.CancelScope(shield=True):
            turn, begun = await services.store.begin_turn(
                session.id, record, owner=services.server_id, siblings=siblings, **caps
            )
            if not begun:
                return turn.number
            actor = self._fleet.actors.get(session.id)
            if actor is not None and actor.start_turn(turn):
                return turn.number
            if actor is not None:
                await self._fleet.gone(actor)
            fresh = await services.store.update_session(session.id, owner=services.server_id)
            self._fleet.start(fresh, policy, turn)
        return turn.number

    async def _new_caps(self, session: SessionRecord, request: PromptRequest, policy: Policy) -> dict[str, int]:
        """The session's new caps, as far as they change. What the policy allows is never passed.

        Raises:
            RookeryError: ``invalid_argument``: a new cap is not above what is spent.
        """
        caps: dict[str, int] = {}
        present = None if session.budget_nano_usd is None else session.budget_nano_usd / NANO_USD
        cap = tightest(policy.limits.usd, present if request.budget_usd is None else request.budget_usd)
        if cap is not None and (request.budget_usd is not None or cap != present):
            caps["budget_nano_usd"] = round(cap * NANO_USD)
        if request.budget_tokens is not None:
            caps["budget_tokens"] = request.budget_tokens
        if request.budget_usd is None and request.budget_tokens is None:
            return caps
        spent = await self._services.store.standing(session.id)
        if request.budget_usd is not None and caps["budget_nano_usd"] <= spent.spent_nano_usd:
            message = (
                "budget_usd: is the session's total cap and must be above the "
                f"${spent.spent_nano_usd / NANO_USD:.4f} it has spent already."
            )
            if cap is not None and cap < request.budget_usd:
                message += f" The policy {policy.name} allows no more than ${cap:g}."
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, message)
        if request.budget_tokens is not None and request.budget_tokens <= spent.spent_tokens:
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT,
                "budget_tokens: is the session's total cap and must be above the "
                f"{spent.spent_tokens:,} tokens it has used already.",
            )
        return caps


async def screen(services: Services, session: SessionRecord, turn: int, prompt: str) -> None:
    """Show a prompt to the user's hooks.

    Raises:
        RookeryError: ``policy_denied``.
    """
    subject = Subject(session.id, session.principal, turn, session.labels)
    objection = await services.hooks.objection(UserPromptSubmit(subject, prompt))
    if objection is not None:
        raise RookeryError(ErrorCode.POLICY_DENIED, f"A hook of this server refuses the prompt: {objection.because}")
