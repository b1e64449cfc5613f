"""Forking sessions: where from, how many, and their first prompts."""

from __future__ import annotations

from typing import Final

from server.errors import ErrorCode, RookeryError
from server.fleet import Fleet
from server.forwarding import Forwarding
from server.models import CheckpointRecord, SessionRecord
from server.prompting import Prompting
from server.requests import PromptRequest
from server.services import Services
from server.undo import Undo

MAX_FORKS: Final = 16
"""Most forks made by one call."""


class Forking:
    """Makes new sessions from checkpoints of others."""

    def __init__(
        self, services: Services, fleet: Fleet, forwarding: Forwarding, undo: Undo, prompting: Prompting
    ) -> None:
        self._services = services
        self._fleet = fleet
        self._forwarding = forwarding
        self._undo = undo
        self._prompting = prompting

    async def fork(
        self, principal: str, session_id: str, *, prompt: str | None, checkpoint_id: str | None, count: int
    ) -> list[str]:
        """New sessions with the files and the conversation of a checkpoint; their ids. The original is not touched.

        Without a checkpoint: from now when the session rests, from the start of its turn when one runs.

        Raises:
            RookeryError: ``session_not_found``, ``checkpoint_not_found``, ``invalid_argument``,
                ``too_many_sessions``, ``sandbox_unavailable``, ``storage_unavailable``.
        """
        if not 1 <= count <= MAX_FORKS:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"count: must be from 1 to {MAX_FORKS}.")
        request = None if prompt is None else PromptRequest(prompt=prompt)
        session = await self._services.store.session(principal, session_id)
        checkpoint = await self._fork_point(session, checkpoint_id)
        ids = []
        for number in range(1, count + 1):
            suffix = f" (fork {number} of {count})" if count > 1 else " (fork)"
            fork_id = self._services.clock.session_id()
            async with self._fleet.lock(fork_id):
                fork = await self._undo.fork(session, checkpoint, fork_id, f"{session.title[:180]}{suffix}")
                if request is not None:
                    await self._prompting.begin(fork, request)
            ids.append(fork_id)
        return ids

    async def _fork_point(self, session: SessionRecord, checkpoint_id: str | None) -> CheckpointRecord:
        if checkpoint_id is not None:
            return await self._undo.find(session, checkpoint_id)
        if not session.state.is_busy and not await self._forwarding.belongs_elsewhere(session):
            async with self._fleet.lock(session.id):
                current = await self._services.store.session(session.principal, session.id)
                if not current.state.is_busy:
                    return await self._undo.checkpoint(current, "fork")
        turn = await self._services.store.turn(session.id, session.turn)
        if turn.checkpoint_id is None:
            raise RookeryError(
                ErrorCode.CHECKPOINT_NOT_FOUND,
                "The session has no checkpoint to fork from yet; try again when its turn has begun.",
                retryable=True,
            )
        return await self._undo.find(session, turn.checkpoint_id)
