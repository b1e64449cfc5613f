"""Forking sessions: where from, how many, and their first prompts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import structlog

from server.errors import ErrorCode, RookeryError
from server.fleet import Fleet
from server.forwarding import Forwarding
from server.holding import Holding
from server.models import CheckpointRecord, SessionRecord, SessionState
from server.prompting import Prompting
from server.requests import PromptRequest
from server.services import Services
from server.undo import Undo

log = structlog.get_logger(__name__)

MAX_FORKS: Final = 16
"""Most forks made by one call."""

FILLED_S: Final = 60.0
"""Longest wait for a fork that another process makes for the same request."""

POLL_S: Final = 0.2

REMOVED_S: Final = 60.0
"""Longest that it takes to remove the forks of a call that failed; what is left then can be found and ended."""


class Forking:
    """Makes new sessions from checkpoints of others.

    Args:
        remove: ends a principal's session and deletes it.
    """

    def __init__(
        self,
        services: Services,
        fleet: Fleet,
        forwarding: Forwarding,
        holding: Holding,
        undo: Undo,
        prompting: Prompting,
        remove: Callable[[str, str], Awaitable[object]],
    ) -> None:
        self._services = services
        self._fleet = fleet
        self._forwarding = forwarding
        self._holding = holding
        self._undo = undo
        self._prompting = prompting
        self._remove = remove

    async def fork(
        self,
        principal: str,
        session_id: str,
        *,
        prompt: str | None,
        checkpoint_id: str | None,
        count: int,
        request_id: str | None = None,
    ) -> list[str]:
        """New sessions with the files and the conversation of a checkpoint; their ids. The original is not touched.

        Without a checkpoint: from now when the session rests, from the start of its turn when one runs. The same
        ``request_id`` for the same original gives the forks that it gave first, and makes those that a crash kept it
        from making. When one of them cannot be made, or cannot begin to work, none of this call is kept: nobody would
        know of those that work.

        Raises:
            RookeryError: ``session_not_found``, ``checkpoint_not_found``, ``invalid_argument``,
                ``too_many_sessions``, ``sandbox_unavailable``, ``storage_unavailable``.
        """
        if not 1 <= count <= MAX_FORKS:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"count: must be from 1 to {MAX_FORKS}.")
        request = None if prompt is None else PromptRequest(prompt=prompt, request_id=request_id)
        session = await self._services.store.session(principal, session_id)
        if request_id is None:
            return await self._forks(session, checkpoint_id, request, [None] * count)
        keys = [f"fork/{session_id}/{request_id}/{number}" for number in range(1, count + 1)]
        async with self._fleet.lock(keys[0]):
            for key in keys:
                known = await self._services.store.session_by_request(principal, key)
                if known is not None:
                    checkpoint_id = known.forked_from
                    break
            return await self._forks(session, checkpoint_id, request, keys)

    async def _forks(
        self,
        session: SessionRecord,
        checkpoint_id: str | None,
        request: PromptRequest | None,
        keys: Sequence[str | None],
    ) -> list[str]:
        """One fork for each key, in this order; those that are there already are taken as they are."""
        checkpoint = await self._fork_point(session, checkpoint_id)
        ids: list[str] = []
        made: list[str] = []
        try:
            for number, key in enumerate(keys, 1):
                suffix = f" (fork {number} of {len(keys)})" if len(keys) > 1 else " (fork)"
                title = f"{session.title[:180]}{suffix}"
                # Again only when the one that a dead process had begun was removed meanwhile.
                while (fork_id := await self._one(session, checkpoint, title, request, key, made)) is None:
                    pass
                ids.append(fork_id)
        except Exception as error:
            await self._undone(session.principal, made)
            if isinstance(error, RookeryError) and made:
                message = f"{error.message} None of the forks that this call had made was kept."
                raise RookeryError(error.code, message, detail=error.detail, retryable=error.retryable) from error
            raise
        return ids

    async def _undone(self, principal: str, made: Sequence[str]) -> None:
        """Remove the forks of a call that failed."""

        async def remove(fork_id: str) -> None:
            try:
                await self._remove(principal, fork_id)
            except RookeryError as error:
                log.warning("fork of a call that failed stays", session_id=fork_id, error=str(error))

        with anyio.move_on_after(REMOVED_S, shield=True):
            async with anyio.create_task_group() as tasks:
                for fork_id in made:
                    tasks.start_soon(remove, fork_id)

    async def _one(
        self,
        session: SessionRecord,
        checkpoint: CheckpointRecord,
        title: str,
        request: PromptRequest | None,
        key: str | None,
        made: list[str],
    ) -> str | None:
        """Make one fork, or find the one that its request made; None when that was not whole and is gone.

        Args:
            made: takes the id of a fork that is made, before anything else is done with it.
        """
        fork_id = self._services.clock.session_id()
        async with self._fleet.lock(fork_id):
            fork = await self._undo.fork(session, checkpoint, fork_id, title, key)
            if fork.id == fork_id:
                made.append(fork_id)
                if request is not None:
                    await self._prompting.begin(fork, request)
                return fork.id
        found = await self._filled(fork.id)
        if found is not None and request is not None:
            async with self._fleet.lock(found.id):
                await self._prompting.begin(found, request)
        return None if found is None else found.id

    async def _filled(self, fork_id: str) -> SessionRecord | None:
        """A fork once it is whole; None when whoever was filling it died and the janitor removed it.

        Raises:
            RookeryError: ``timeout``.
        """
        with anyio.move_on_after(FILLED_S):
            while True:
                try:
                    fork = await self._services.store.session_for_server(fork_id)
                except RookeryError as error:
                    if error.code is not ErrorCode.SESSION_NOT_FOUND:
                        raise
                    return None
                if fork.state is not SessionState.STARTING or fork.turn:
                    return fork
                # Another process fills it: nothing here could set an event.
                await anyio.sleep(POLL_S)
        raise RookeryError(
            ErrorCode.TIMEOUT,
            "Another server process makes this fork for the same request and has not finished. Try again.",
            retryable=True,
        )

    async def _present(self, session: SessionRecord) -> CheckpointRecord | None:
        """A checkpoint of a session as it is now; None when it is at work by now, or rests in another process."""
        try:
            # Held, so that no other process lets its agent at the files while they are looked at.
            async with self._holding.resting(session.principal, session.id) as current:
                return await self._undo.checkpoint(current, "fork")
        except RookeryError as error:
            if error.code is ErrorCode.SESSION_BUSY:
                return None
            if error.code is not ErrorCode.SESSION_ENDED:
                raise
        async with self._fleet.lock(session.id):
            ended = await self._services.store.session(session.principal, session.id)
            return await self._undo.checkpoint(ended, "fork")

    async def _fork_point(self, session: SessionRecord, checkpoint_id: str | None) -> CheckpointRecord:
        if checkpoint_id is not None:
            return await self._undo.find(session, checkpoint_id)
        if not session.state.is_busy and not await self._forwarding.belongs_elsewhere(session):
            present = await self._present(session)
            if present is not None:
                return present
        turn = await self._services.store.turn(session.id, session.turn)
        if not session.state.is_busy and turn.end_checkpoint_id is not None:
            # It rests in another server process, which alone may look at its files now.
            return await self._undo.find(session, turn.end_checkpoint_id)
        if turn.checkpoint_id is None:
            raise RookeryError(
                ErrorCode.CHECKPOINT_NOT_FOUND,
                "The session has no checkpoint to fork from yet; try again when its turn has begun.",
                retryable=True,
            )
        return await self._undo.find(session, turn.checkpoint_id)
