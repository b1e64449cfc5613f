"""A house in a process of its own, driven from here and killed like a real one."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from server.audit import trail
from server.errors import RookeryError
from server.models import Outcome
from server.registry import Registry
from tests.house import ME, open_house, say, settled, spawn
from tests.workload import cut_off

ANSWER_S: Final = 90.0
_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.remote"])


class RemoteHouse:
    """Calls of a registry, carried out in another process.

    Args:
        overrides: settings of the house, beside those of :func:`tests.house.settings_for`.
    """

    def __init__(self, home: Path, **overrides: Any) -> None:
        self._home = home
        self._overrides = overrides
        self._start()

    def _start(self) -> None:
        self._connection, theirs = _FORKS.Pipe()
        self._process = _FORKS.Process(target=_serve, args=(str(self._home), self._overrides, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, call: str, *arguments: Any) -> Any:
        """Carry out one of :data:`CALLS`; its result, or the code of the error that it raised.

        Raises:
            AssertionError: no answer came in time.
            EOFError: it died of the call.
        """
        self._connection.send((call, arguments))
        assert self._connection.poll(ANSWER_S), f"no answer to {call}"
        return self._connection.recv()

    def crash(self) -> None:
        """Kill it, and start another in the same home."""
        self.kill()
        self._start()

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.join()
        self._connection.close()


async def _begin(registry: Registry, steps: list[dict[str, Any]]) -> str:
    return await spawn(registry, steps)


async def _go_on(registry: Registry, session_id: str, steps: list[dict[str, Any]]) -> int:
    return await say(registry, session_id, steps)


async def _fork(registry: Registry, session_id: str) -> str:
    (fork,) = await registry.fork(ME, session_id, prompt=None, checkpoint_id=None, count=1)
    return fork


async def _forks(registry: Registry, session_id: str, prompt: str, count: int, request_id: str) -> list[str]:
    return await registry.fork(ME, session_id, prompt=prompt, checkpoint_id=None, count=count, request_id=request_id)


async def _cut_off(_: Registry, phase: str, at: int, how: str) -> None:
    cut_off(phase, at, how)


async def _hold_back_decisions(_: Registry) -> None:
    trail.GATHER_S = ANSWER_S  # type: ignore[misc]  # only a kill ends the wait


async def _rewind(registry: Registry, session_id: str, checkpoint_id: str, conversation: bool) -> None:
    await registry.rewind(ME, session_id, checkpoint_id, dry_run=False, conversation=conversation)


async def _interrupt(registry: Registry, session_id: str) -> None:
    await registry.interrupt(ME, session_id)


async def _end(registry: Registry, session_id: str) -> None:
    await registry.end(ME, session_id, delete=False)


async def _outcome(registry: Registry, session_id: str) -> Outcome:
    return await registry.outcome(ME, session_id)


async def _settled(registry: Registry, session_id: str) -> Outcome:
    return await settled(registry, session_id)


CALLS: Final[dict[str, Callable[..., Awaitable[Any]]]] = {
    "spawn": _begin,
    "continue": _go_on,
    "fork": _fork,
    "forks": _forks,
    "cut off": _cut_off,
    "hold back decisions": _hold_back_decisions,
    "rewind": _rewind,
    "interrupt": _interrupt,
    "end": _end,
    "outcome": _outcome,
    "settled": _settled,
}


def _serve(home: str, overrides: dict[str, Any], connection: Connection) -> None:
    # Beside its home, so that the last one, which nobody sweeps after, leaves nothing elsewhere.
    tempfile.tempdir = str(Path(home).parent)
    anyio.run(_serve_calls, Path(home), overrides, connection)


async def _serve_calls(home: Path, overrides: dict[str, Any], connection: Connection) -> None:
    async with open_house(home, **overrides) as registry:
        while True:
            call, arguments = await anyio.to_thread.run_sync(connection.recv)
            try:
                result = await CALLS[call](registry, *arguments)
            except RookeryError as error:
                result = error.code
            connection.send(result)
