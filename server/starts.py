"""How many agents come up at once on this machine: the others wait, each in its turn.

A CLI that starts needs a processor for a second, the sandbox before it for a little. Dozens that start together all
take as long as the last one, past what a start may take, and leave the server no time for those that run already. In
a queue the first turn is done before the last one begins, and all of them are done sooner.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from server.sandboxes.base import Capabilities

FOR_EACH_PROCESSOR: Final = 2
"""A start waits for the disk and for the server now and then; another one uses the processor meanwhile."""


class Starts:
    """Places for starts, given in the order in which they were asked for.

    Args:
        at_once: how many there are; None: as many as suit the processors of the machine.
    """

    def __init__(self, at_once: int | None = None) -> None:
        self._places = anyio.Semaphore(at_once or FOR_EACH_PROCESSOR * (os.cpu_count() or 1))

    @asynccontextmanager
    async def place(self, where: Capabilities, called_off: anyio.Event | None = None) -> AsyncIterator[bool]:
        """Wait for a place and hold it while an agent starts in a sandbox; at once where that is another machine.

        Args:
            where: what the provider of the sandbox can do.
            called_off: ends the waiting, for nobody wants the agent any more. Whether there is a place is what is
                yielded.
        """
        if not where.host_workspace:
            yield True
        elif await self._had(called_off):
            try:
                yield True
            finally:
                self._places.release()
        else:
            yield False

    async def _had(self, called_off: anyio.Event | None) -> bool:
        """Wait for a place; whether it was had before the start was called off."""
        if called_off is None:
            await self._places.acquire()
            return True
        had = False
        async with anyio.create_task_group() as waiting:

            async def give_up() -> None:
                await called_off.wait()
                waiting.cancel_scope.cancel()

            waiting.start_soon(give_up)
            await self._places.acquire()
            had = True
            waiting.cancel_scope.cancel()
        return had
