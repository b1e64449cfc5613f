"""Holding a session that rests, so that its files can be worked on and no turn begins meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from server.errors import ErrorCode, RookeryError
from server.fleet import Fleet
from server.forwarding import Forwarding
from server.inbox import Leave
from server.models import SessionRecord
from server.resting import seal_workspace
from server.services import Services


class Holding:
    """Holds sessions for work from outside."""

    def __init__(self, services: Services, fleet: Fleet, forwarding: Forwarding) -> None:
        self._services = services
        self._fleet = fleet
        self._forwarding = forwarding

    @asynccontextmanager
    async def resting(self, principal: str, session_id: str, *, asleep: bool = False) -> AsyncIterator[SessionRecord]:
        """The session while it is idle, held so that no turn begins; with ``asleep`` no agent lives in it either.

        The store knows who holds it: other processes send their commands here meanwhile, and if this one dies, the
        janitor of the next looks after the session.

        Raises:
            RookeryError: ``session_not_found``, ``session_busy``, ``session_ended``.
        """
        session = await self._services.store.session(principal, session_id)
        if await self._forwarding.belongs_elsewhere(session):
            raise RookeryError(
                ErrorCode.SESSION_BUSY,
                "The session is held by another server process of this home; try again when it sleeps there "
                "(after ROOKERY_IDLE_S), or ask that process.",
            )
        async with self._fleet.lock(session_id):
            current = await self._services.store.session(principal, session_id)
            if current.state.is_terminal:
                raise RookeryError(
                    ErrorCode.SESSION_ENDED, "The session has ended; fork_session still works and goes on from it."
                )
            if current.state.is_busy:
                raise RookeryError(
                    ErrorCode.SESSION_BUSY, "A turn runs in this session; wait for it, or call interrupt_session."
                )
            if asleep:
                await self._fleet.dismiss(session_id, Leave.HIBERNATE)
            async with self._claimed(session_id):
                yield current

    @asynccontextmanager
    async def _claimed(self, session_id: str) -> AsyncIterator[None]:
        """The session's lease, given back at the end unless its agent lives here.

        Raises:
            RookeryError: ``session_busy``: another process took it first.
        """
        store, own = self._services.store, self._services.server_id
        held = (await store.session_for_server(session_id)).owner
        if held != own and not await store.claim(session_id, own, expect_owner=held):
            raise RookeryError(
                ErrorCode.SESSION_BUSY, "Another Rookery server took this session. Try again in a moment."
            )
        try:
            yield
        finally:
            if session_id not in self._fleet.actors:
                with anyio.CancelScope(shield=True):
                    await seal_workspace(self._services, session_id)
                    await store.claim(session_id, None, expect_owner=own)
