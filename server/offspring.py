"""The registry as an agent sees it: the sessions that it spawned, and those that they spawned, and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from server.errors import ErrorCode, RookeryError
from server.models import CheckpointRecord, Outcome, SessionRecord
from server.registry import Registry
from server.requests import CostRequest, ListRequest, PromptRequest, SpawnRequest
from server.views import (
    CostReport,
    Deletion,
    DiffReport,
    FileContent,
    FileListing,
    PatchReport,
    Progress,
    RewindReport,
    SessionPage,
    SessionView,
    TranscriptPage,
    TurnStatus,
    WrittenFile,
)

OWN_BUDGETS: Final = frozenset({"session", "tree"})
"""Budgets that an agent is told of; the rest is its user's affair."""


class Offspring:
    """What an agent may ask of the fleet. A session that does not descend from its own reads as not found.

    The ``principal`` of each method is the agent's own; it is there because the tools are the same for all callers.

    Args:
        registry: asked in its name.
        session: the agent's own.
    """

    def __init__(self, registry: Registry, session: SessionRecord) -> None:
        self._registry = registry
        self._session = session

    async def _check(self, *session_ids: str, own: bool = False) -> None:
        """Refuse what is not the agent's to touch; with ``own`` it may look at its own session too."""
        for session_id in session_ids:
            if own and session_id == self._session.id:
                continue
            if not await self._registry.descends(session_id, self._session.id):
                raise RookeryError(
                    ErrorCode.SESSION_NOT_FOUND,
                    "There is no such session among those that you spawned; list_sessions shows them.",
                )

    async def spawn(self, principal: str, request: SpawnRequest, *, token_id: str | None = None) -> str:
        """A child of the agent's session. Its ``request_id`` is the agent's own matter, and nobody else's."""
        if request.request_id is not None:
            request = request.model_copy(update={"request_id": f"{self._session.id}:{request.request_id}"})
        request = await self._registry.inherited(self._session, request)
        return await self._registry.spawn(
            principal, request, token_id=self._session.token_id, parent_id=self._session.id
        )

    async def prompt(self, principal: str, session_id: str, request: PromptRequest) -> int:
        await self._check(session_id)
        return await self._registry.prompt(principal, session_id, request)

    async def outcome(self, principal: str, session_id: str) -> Outcome:
        await self._check(session_id, own=True)
        return await self._registry.outcome(principal, session_id)

    async def turn_status(self, principal: str, session_id: str, number: int) -> TurnStatus:
        await self._check(session_id, own=True)
        return await self._registry.turn_status(principal, session_id, number)

    async def progress(self, principal: str, session_id: str) -> Progress:
        await self._check(session_id, own=True)
        return await self._registry.progress(principal, session_id)

    async def wait_for_change(
        self, principal: str, session_ids: Sequence[str], after: Mapping[str, int], timeout_s: float
    ) -> None:
        if self._session.id in session_ids:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "session_ids: your own session works as long as you wait.")
        await self._check(*session_ids)
        await self._registry.wait_for_change(principal, session_ids, after, timeout_s)

    async def get(self, principal: str, session_id: str) -> SessionView:
        await self._check(session_id, own=True)
        return await self._registry.get(principal, session_id)

    async def list(self, principal: str, request: ListRequest) -> SessionPage:
        """The agent's children; ``parent_id`` may name one of them, to see its own."""
        parent = request.parent_id or self._session.id
        await self._check(parent, own=True)
        return await self._registry.list(principal, request.model_copy(update={"parent_id": parent}))

    async def transcript(self, principal: str, session_id: str, *, after: int, limit: int) -> TranscriptPage:
        await self._check(session_id)
        return await self._registry.transcript(principal, session_id, after=after, limit=limit)

    async def interrupt(self, principal: str, session_id: str) -> None:
        await self._check(session_id)
        await self._registry.interrupt(principal, session_id)

    async def end(self, principal: str, session_id: str, *, delete: bool, descendants: bool = False) -> Deletion:
        await self._check(session_id)
        return await self._registry.end(principal, session_id, delete=delete, descendants=descendants)

    async def costs(self, principal: str, request: CostRequest) -> CostReport:
        """Of one session, or of the agent's own with all that it spawned."""
        if request.session_id is None:
            request = request.model_copy(update={"session_id": self._session.id, "tree": True})
        assert request.session_id is not None
        await self._check(request.session_id, own=True)
        report = await self._registry.costs(principal, request)
        told = tuple(budget for budget in report.budgets if budget.scope in OWN_BUDGETS)
        return report.model_copy(update={"budgets": told})

    async def list_files(
        self, principal: str, session_id: str, path: str = ".", depth: int = 1, limit: int = 500
    ) -> FileListing:
        await self._check(session_id)
        return await self._registry.list_files(principal, session_id, path, depth, limit)

    async def read_file(
        self, principal: str, session_id: str, path: str, offset: int = 0, limit: int = 65_536
    ) -> FileContent:
        await self._check(session_id)
        return await self._registry.read_file(principal, session_id, path, offset, limit)

    async def write_file(self, principal: str, session_id: str, path: str, data: bytes) -> WrittenFile:
        await self._check(session_id)
        return await self._registry.write_file(principal, session_id, path, data)

    async def diff(
        self,
        principal: str,
        session_id: str,
        *,
        from_checkpoint_id: str | None,
        to_checkpoint_id: str | None,
        paths: Sequence[str] | None,
        max_bytes: int,
    ) -> DiffReport:
        await self._check(session_id)
        return await self._registry.diff(
            principal,
            session_id,
            from_checkpoint_id=from_checkpoint_id,
            to_checkpoint_id=to_checkpoint_id,
            paths=paths,
            max_bytes=max_bytes,
        )

    async def export(
        self,
        principal: str,
        session_id: str,
        *,
        from_checkpoint_id: str | None,
        to_checkpoint_id: str | None,
        paths: Sequence[str] | None,
    ) -> PatchReport:
        await self._check(session_id)
        return await self._registry.export(
            principal,
            session_id,
            from_checkpoint_id=from_checkpoint_id,
            to_checkpoint_id=to_checkpoint_id,
            paths=paths,
        )

    async def create_checkpoint(self, principal: str, session_id: str, label: str = "") -> CheckpointRecord:
        await self._check(session_id)
        return await self._registry.create_checkpoint(principal, session_id, label)

    async def rewind(
        self, principal: str, session_id: str, checkpoint_id: str, *, dry_run: bool, conversation: bool
    ) -> RewindReport:
        await self._check(session_id)
        return await self._registry.rewind(
            principal, session_id, checkpoint_id, dry_run=dry_run, conversation=conversation
        )
