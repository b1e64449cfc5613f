"""The agents of this process: an actor for each resident session, places for them, and the warm pool."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Set
from contextlib import AbstractAsyncContextManager
from typing import Final
from weakref import WeakValueDictionary

import anyio
from anyio.abc import TaskGroup

from policies import Policy
from server.changes import Changes
from server.errors import ErrorCode, RookeryError
from server.inbox import Leave, StartTurn
from server.launching.agents import LiveAgent, Survivor
from server.launching.warm import WarmPool
from server.models import SessionRecord, TurnRecord
from server.places import Places
from server.services import Services
from server.session import SessionActor
from server.telemetry.spans import present

LEAVE_TIMEOUT_S: Final = 40.0
"""Longest time an actor needs to go: interrupt, kill, checkpoint, sandbox stop, all bounded by themselves."""

SHUTDOWN_TIMEOUT_S: Final = 10.0
"""Longest time all actors together get when the server stops; the janitor of the next start mends the rest."""


class Fleet:
    """Starts and ends actors. All of them live in one task group.

    Args:
        tasks: where the actors live.
        left: told the session's id after an actor has gone, unless the fleet is closing.
    """

    def __init__(
        self, services: Services, changes: Changes, tasks: TaskGroup, left: Callable[[str], Awaitable[None]]
    ) -> None:
        self.pool = WarmPool(services)
        self._services = services
        self._changes = changes
        self._tasks = tasks
        self._left = left
        self._actors: dict[str, SessionActor] = {}
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self._closing = False
        settings = services.settings
        self._places = Places(settings.max_sessions, settings.principal_turns, settings.queue_s, self._working)

    def _working(self) -> list[str]:
        """The principal of each turn at work."""
        return [actor.session.principal for actor in self._actors.values() if actor.idle_since is None]

    @property
    def actors(self) -> Mapping[str, SessionActor]:
        """The actors that live now, by session."""
        return self._actors

    @property
    def reserved(self) -> Set[str]:
        """Sandboxes that have no session yet."""
        return self.pool.reserved

    def lock(self, session_id: str) -> anyio.Lock:
        """The lock under which commands of one session are carried out."""
        lock = self._locks.get(session_id)
        if lock is None:
            lock = anyio.Lock()
            self._locks[session_id] = lock
        return lock

    def start(
        self,
        session: SessionRecord,
        policy: Policy,
        turn: TurnRecord,
        *,
        resumed: bool = False,
        warm: LiveAgent | None = None,
        survivor: Survivor | None = None,
    ) -> SessionActor:
        """Start an actor for a session whose turn is in the store already."""
        outlived = None if survivor is None else survivor.live
        actor = SessionActor(self._services, session, policy, self._changes, warm, outlived)
        heard = 0 if survivor is None else survivor.heard
        self._actors[session.id] = actor
        trace = present()

        async def live() -> None:
            try:
                await actor.run(StartTurn(turn, resumed, trace, heard))
            finally:
                if self._actors.get(session.id) is actor:
                    del self._actors[session.id]
            if not self._closing:
                await self._left(session.id)

        self._tasks.start_soon(live, name=f"session {session.id}")
        return actor

    def place(self, principal: str) -> AbstractAsyncContextManager[None]:
        """A place for a principal's turn; see :meth:`server.places.Places.place`."""
        return self._places.place(principal)

    async def make_room(self) -> None:
        """Let the longest idle agent sleep when there are too many.

        Raises:
            RookeryError: ``too_many_sessions`` when all are at work.
        """
        if self._closing:
            raise RookeryError(ErrorCode.TOO_MANY_SESSIONS, "The server is stopping; try again when it is back.")
        limit = self._services.settings.max_sessions
        while len(self._actors) >= limit:
            idle = [(since, actor) for actor in self._actors.values() if (since := actor.idle_since) is not None]
            if not idle:
                raise RookeryError(
                    ErrorCode.TOO_MANY_SESSIONS,
                    f"All {limit} places are taken by sessions at work. Wait for one with wait_for_sessions, interrupt "
                    "one, or have ROOKERY_MAX_SESSIONS raised.",
                )
            _, oldest = min(idle, key=lambda pair: pair[0])
            await self.dismiss(oldest.session.id, Leave.HIBERNATE)

    async def dismiss(self, session_id: str, why: Leave) -> bool:
        """End a session's actor and wait until it has gone; whether there was one."""
        actor = self._actors.get(session_id)
        if actor is None:
            return False
        await actor.leave(why)
        await self.gone(actor)
        return True

    async def gone(self, actor: SessionActor) -> None:
        """Wait until an actor that is leaving has gone."""
        with anyio.move_on_after(LEAVE_TIMEOUT_S):
            await actor.stopped.wait()

    async def close(self) -> None:
        """Interrupt what runs, flush transcripts, end every agent. Bounded."""
        self._closing = True
        with anyio.move_on_after(SHUTDOWN_TIMEOUT_S):
            actors = list(self._actors.values())
            async with anyio.create_task_group() as tasks:
                for actor in actors:
                    tasks.start_soon(actor.leave, Leave.SHUTDOWN)
            for actor in actors:
                await actor.stopped.wait()
