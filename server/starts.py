"""How many agents come up at once on this machine: the others wait, each in its turn.

A CLI that starts needs a processor for a second, the sandbox before it for a little. Dozens that start together all
take as long as the last one, past what a start may take, and leave the server no time for those that run already. In
a queue the first turn is done before the last one begins, and all of them are done sooner.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from server.sandboxes.base import Sandbox

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
    async def place(self, sandbox: Sandbox) -> AsyncIterator[None]:
        """Wait for a place and hold it while an agent starts in a sandbox; at once where that is another machine."""
        if sandbox.workspace is None:
            yield
            return
        async with self._places:
            yield
