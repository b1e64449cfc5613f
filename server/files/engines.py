"""The files' engines that run in sandboxes: shipped, started and started again when they are needed."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

import anyio
import structlog

from server.errors import ErrorCode, RookeryError
from server.files.dialogue import Dialogue
from server.files.shipment import ENGINE
from server.sandboxes.base import WORKSPACE
from server.sandboxes.shipping import NOT_HERE, ROOM, RootSandbox

log = structlog.get_logger(__name__)

TRUSTED_S: Final = 1.0
"""A conversation that was at rest for longer than this is asked whether it still is one."""

THIN_AFTER: Final = 32
"""Snapshots after which what only older ones need is removed inside: the sandbox's disk is small."""

PING_S: Final = 5.0
END_S: Final = 10.0


@dataclass
class _Lane:
    """One conversation at a time. Short looks have a lane of their own, not to wait for long work."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    dialogue: Dialogue | None = None
    used: float = 0.0


class RemoteEngine:
    """The engine of one sandbox. It ends with the sandbox's processes, and is started again when it is needed.

    Args:
        sandbox: where it runs; whoever asks must hold it.
        workspace: the tree inside the sandbox.
        room: what is ours inside the sandbox.
    """

    def __init__(self, sandbox: RootSandbox, workspace: str = WORKSPACE, room: str = ROOM) -> None:
        self._held = weakref.ref(sandbox)
        self._workspace = workspace
        self._room = room
        self._work = _Lane()
        self._look = _Lane()
        self._taken = 0

    def is_full(self) -> bool:
        """Count one more snapshot; whether its store has taken so many that older ones should make room."""
        self._taken += 1
        return self._taken % THIN_AFTER == 0

    @asynccontextmanager
    async def working(self) -> AsyncIterator[Dialogue]:
        """A conversation for one request that may take long.

        Raises:
            RookeryError: ``sandbox_lost``, ``sandbox_unavailable``.
        """
        async with self._talking(self._work) as dialogue:
            yield dialogue

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[Dialogue]:
        """A conversation for one short request.

        Raises:
            RookeryError: ``sandbox_lost``, ``sandbox_unavailable``.
        """
        async with self._talking(self._look) as dialogue:
            yield dialogue

    async def close(self) -> None:
        """End its processes. Bounded, idempotent."""
        for lane in (self._work, self._look):
            dialogue, lane.dialogue = lane.dialogue, None
            if dialogue is not None:
                await _end(dialogue)

    @asynccontextmanager
    async def _talking(self, lane: _Lane) -> AsyncIterator[Dialogue]:
        async with lane.lock:
            # Whatever cancels this meanwhile: nobody else goes on with a conversation that owes an answer.
            dialogue, lane.dialogue = lane.dialogue, None
            if dialogue is None or not await self._lives(dialogue, lane.used):
                dialogue = await self._begin()
            lane.dialogue = dialogue
            dialogue.at_rest = False
            try:
                yield dialogue
                dialogue.at_rest = True
            finally:
                lane.used = anyio.current_time()
                if not dialogue.at_rest:
                    lane.dialogue = None
                    await _end(dialogue)

    async def _lives(self, dialogue: Dialogue, used: float) -> bool:
        """Whether a conversation can be gone on with; one that cannot is ended."""
        lives = dialogue.process.returncode is None and anyio.current_time() - used < TRUSTED_S
        try:
            if not lives and dialogue.process.returncode is None:
                with anyio.fail_after(PING_S):
                    await dialogue.send(do="ping")
                    await dialogue.receive()
                lives = True
        except (RookeryError, TimeoutError, OSError) as error:
            log.info("files engine is started anew", detail=str(error))
        finally:
            if not lives:
                await _end(dialogue)
        return lives

    async def _begin(self) -> Dialogue:
        sandbox = self._held()
        assert sandbox is not None, "whoever asks holds the sandbox"
        for shipped in (False, True):
            home = f"{self._room}/files"
            dialogue = Dialogue(await ENGINE.start(sandbox, [self._workspace, home], self._room))
            try:
                await dialogue.receive()
            except RookeryError:
                status = await _status(dialogue)
                await _end(dialogue)
                if shipped or status != NOT_HERE:
                    raise
            except BaseException:
                await _end(dialogue)
                raise
            else:
                return dialogue
            await ENGINE.ship(sandbox, self._room)
        raise RookeryError(ErrorCode.SANDBOX_UNAVAILABLE, "The sandbox does not keep programs of ours.")


class RemoteEngines:
    """The engines of all sandboxes that this process has to do with: one for each, for as long as it is held."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[RootSandbox, RemoteEngine] = WeakKeyDictionary()

    def of(self, sandbox: RootSandbox) -> RemoteEngine:
        """The engine of a sandbox."""
        return self._known.setdefault(sandbox, RemoteEngine(sandbox))


async def _status(dialogue: Dialogue) -> int | None:
    """What the engine ended with; None when it does not end."""
    with anyio.move_on_after(PING_S):
        return await dialogue.process.wait()
    return None


async def _end(dialogue: Dialogue) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(END_S):
        await dialogue.process.terminate()
