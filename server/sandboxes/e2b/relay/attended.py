"""A process that is attended to: its stderr is drained, and its end is the end of all that came from it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from server.sandboxes.e2b.relay.children import Child, Children
from server.sandboxes.e2b.relay.frames import PIECE

DRAIN_S = 10.0
"""How long the rest of a dead process's output may take."""


class Attended:
    """Looks after one child.

    Args:
        stderr_kept: how many bytes of the end of its stderr are kept.
    """

    def __init__(self, children: Children, child: Child, *, stderr_kept: int) -> None:
        self.child = child
        self.stderr_dropped = False
        self._children = children
        self._kept = stderr_kept
        self._stderr = bytearray()
        self._ending: asyncio.Task[None] | None = None
        self._draining = asyncio.ensure_future(self._drain())

    @property
    def stderr(self) -> bytes:
        """The end of its stderr."""
        return bytes(self._stderr)

    def terminate(self, grace_s: float) -> None:
        """Begin to end it with all that came from it. A second call changes nothing, unless it leaves no grace."""
        if self._ending is not None and grace_s > 0:
            return
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.ensure_future(self._children.end(self.child, grace_s=grace_s))

    async def ended(self) -> None:
        """Wait until it ended, and see that nothing of it is left, and that its stderr is known to the end."""
        await self.child.ended.wait()
        if self._ending is not None:
            await asyncio.wait([self._ending])
        await self._children.end(self.child, grace_s=0)
        await asyncio.wait([self._draining], timeout=DRAIN_S)

    async def close(self) -> None:
        """Let go of it. It must have ended."""
        self._draining.cancel()
        await asyncio.wait([self._draining])
        self.child.close()

    async def _drain(self) -> None:
        await each_piece(self.child.stderr, self._remember)

    def _remember(self, piece: bytes) -> None:
        self._stderr += piece
        if len(self._stderr) > self._kept:
            self.stderr_dropped = True
            del self._stderr[: len(self._stderr) - self._kept]


async def each_piece(source: socket.socket, take: Callable[[bytes], None]) -> None:
    """Read to the end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            piece = await loop.sock_recv(source, PIECE)
        except OSError:
            return
        if not piece:
            return
        take(piece)
