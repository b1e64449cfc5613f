"""Starting sessions: from a request to a row in the store and an actor that works on its first turn."""

from __future__ import annotations

from typing import Final

import anyio

from policies import Policy
from server.direct import is_direct
from server.errors import ErrorCode, RookeryError
from server.fleet import Fleet
from server.kinship import as_child, room_for_child
from server.launching.agents import LiveAgent, launch_options
from server.models import NANO_USD, SessionRecord, SessionState, TurnRecord
from server.policy_book import check_model, tightest
from server.prompting import screen
from server.requests import SpawnRequest
from server.services import Services
from server.workspaces.filling import check_source

PLACING_S: Final = 15.0
"""How long a spawn waits for its sandbox; what fails later (a long clone) is told as the turn's outcome."""


class Spawning:
    """Starts sessions in this process."""

    def __init__(self, services: Services, fleet: Fleet) -> None:
        self._services = services
        self._fleet = fleet

    async def spawn(
        self, principal: str, request: SpawnRequest, *, token_id: str | None = None, parent_id: str | None = None
    ) -> str:
        """Start a session; its id, once it is durable and its sandbox exists.

        The same ``request_id`` from the same principal gives the session that it gave first, also when two calls race.

        Args:
            principal: whose session it is.
            request: what is asked for.
            parent_id: the principal's session that spawns this one, which then works beneath its policy.

        Raises:
            RookeryError: ``invalid_argument``, ``too_many_sessions``, ``model_auth_failed``, ``sandbox_unavailable``,
                ``storage_unavailable``; with a parent ``session_not_found``, ``session_ended``, ``policy_denied``.
        """
        store, called_at = self._services.store, anyio.current_time()
        if request.request_id is not None:
            known = await store.session_by_request(principal, request.request_id)
            if known is not None:
                return known.id
        parent = None if parent_id is None else await store.session(principal, parent_id)
        siblings = None if parent is None else room_for_child(self._services, parent)
        session, turn, policy = self._new_session(principal, request, token_id, parent)
        if not is_direct(self._services, session):
            self._services.gateway.require_credential()
        await screen(self._services, session, 1, request.prompt)
        async with self._fleet.place(principal):
            return await self._spawned(session, turn, policy, called_at, siblings)

    async def _spawned(
        self, session: SessionRecord, turn: TurnRecord, policy: Policy, called_at: float, siblings: int | None
    ) -> str:
        """Start a session that has a place; its id."""
        await self._fleet.make_room()
        warm = None
        if session.sandbox_kind == self._services.providers.default.name:
            warm = self._fleet.pool.take(launch_options(session, policy, self._services.settings))
        if warm is not None:
            root = warm.session_id if session.parent_id is None else session.root_id
            adopted = {"id": warm.session_id, "root_id": root, "sandbox": dict(warm.sandbox.reference)}
            session = session.model_copy(update=adopted)
            turn = turn.model_copy(update={"session_id": warm.session_id})
        # From the row on, the session must get its actor, whatever becomes of the one who asked.
        with anyio.CancelScope(shield=True):
            async with self._fleet.lock(session.id):
                created = await self._create(session, turn, warm, siblings)
                if created.id != session.id:
                    return created.id
                actor = self._fleet.start(created, policy, turn, warm=warm)
        with anyio.move_on_after(PLACING_S):
            await actor.placement.settled.wait()
        if actor.placement.error is not None:
            raise actor.placement.error
        self._services.metrics.spawned(anyio.current_time() - called_at, warm=warm is not None)
        return created.id

    async def _create(
        self, session: SessionRecord, turn: TurnRecord, warm: LiveAgent | None, siblings: int | None
    ) -> SessionRecord:
        """Write the session; a warm agent that it does not get after all is ended."""
        created: SessionRecord | None = None
        try:
            created = await self._services.store.create_session(
                session, turn, most_open=self._services.settings.principal_sessions, siblings=siblings
            )
        finally:
            if warm is not None and created is not None and created.id == session.id:
                self._fleet.pool.reserved.discard(session.id)
            elif warm is not None:
                await self._fleet.pool.discard(warm)
        return created

    def _sandbox_kind(self, request: SpawnRequest) -> str:
        """What kind of sandbox the session gets.

        Raises:
            RookeryError: ``invalid_argument``: this server makes none of that kind.
        """
        providers = self._services.providers
        if request.sandbox is None:
            return providers.default.name
        try:
            return providers.named(request.sandbox).name
        except RookeryError as error:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"sandbox: {error.message}") from error

    def _new_session(
        self, principal: str, request: SpawnRequest, token_id: str | None, parent: SessionRecord | None
    ) -> tuple[SessionRecord, TurnRecord, Policy]:
        settings, clock = self._services.settings, self._services.clock
        session_id, now = clock.session_id(), clock.now()
        source = None if request.workspace is None else request.workspace.model_dump(exclude_none=True)
        if source is not None:
            check_source(source, settings)
        budget = request.budget_usd or settings.default_budget_usd
        session = SessionRecord(
            id=session_id,
            principal=principal,
            root_id=session_id,
            title=request.title or _title(request.prompt),
            labels=request.labels,
            state=SessionState.STARTING,
            turn=1,
            model=request.model or settings.model,
            system_prompt=request.system_prompt,
            policy=request.policy or settings.policy,
            tools=request.tools,
            max_turns=request.max_turns,
            output_schema=request.output_schema,
            budget_nano_usd=round(budget * NANO_USD),
            # A child that names none takes from what its parent has left, and is promised nothing.
            budget_tokens=request.budget_tokens or (settings.default_budget_tokens if parent is None else None),
            sandbox_kind=self._sandbox_kind(request),
            owner=self._services.server_id,
            request_id=request.request_id,
            token_id=token_id,
            workspace=source,
            created_at=now,
            updated_at=now,
        )
        turn = TurnRecord(
            session_id=session_id, number=1, prompt=request.prompt, request_id=request.request_id, started_at=now
        )
        if parent is not None:
            session = as_child(session, parent)
        policy = self._services.policy_of(session)
        check_model(policy, session.model)
        cap = tightest(policy.limits.usd, budget)
        assert cap is not None
        return session.model_copy(update={"budget_nano_usd": round(cap * NANO_USD)}), turn, policy


def _title(prompt: str) -> str:
    first = next((line.strip() for line in prompt.splitlines() if line.strip()), "")
    return first if len(first) <= 60 else f"{first[:59]}…"
