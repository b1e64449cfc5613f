"""The wire as a command that E2B runs in the sandbox: its output comes as text, its input goes as bytes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import anyio
import structlog

from server.sandboxes.e2b.failures import failure_of, translated
from server.sandboxes.e2b.layout import CONNECT

if TYPE_CHECKING:
    from e2b import AsyncSandbox

log = structlog.get_logger(__name__)

OPEN_S: Final = 30.0
CLOSE_S: Final = 2.0

WAITING: Final = 512 * 1024
"""Characters of output that wait for the reader; then the stream is held up, and with it the relay."""


class CommandWire:
    """Made by :meth:`opened`. Implements :class:`.wire.Wire`."""

    def __init__(self) -> None:
        self._came: list[str] = []
        self._waiting = 0
        self._over = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._handle: Any = None
        self._input: Any = None
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def opened(cls, box: AsyncSandbox) -> CommandWire:
        """A wire to the relay of a sandbox.

        Raises:
            RookeryError: ``sandbox_lost``, ``sandbox_unavailable``.
        """
        wire = cls()
        async with translated("reach the sandbox"):
            wire._handle = await box.commands.run(
                CONNECT,
                background=True,
                stdin=True,
                user="root",
                # Zero, or E2B kills the command after a minute.
                timeout=0,
                request_timeout=OPEN_S,
                on_stdout=wire._take,
                retain_output=False,
            )
            wire._input = box.commands.stream_input(wire._handle.pid, timeout=0)
        # The SDK reads the stream in a task of its own, and tells only who waits for it how that ended.
        wire._ending = asyncio.ensure_future(wire._end())
        return wire

    async def _take(self, text: str) -> None:
        """Called by the SDK with each chunk; it takes the next one when this is done."""
        # A stream of the library's would cost a turn of the event loop and a task's wake-up for each chunk.
        if self._over:
            return
        self._came.append(text)
        self._waiting += len(text)
        self._changed.set()
        if self._waiting >= WAITING:
            self._room.clear()
            await self._room.wait()

    async def _end(self) -> None:
        try:
            await self._handle.wait()
        except Exception as error:  # the SDK raises bare Exception for a stream without an end
            log.debug("wire_ended", error=str(error)[:200])
        finally:
            self._finish()

    def _finish(self) -> None:
        """Nothing comes any more."""
        self._over = True
        self._changed.set()
        self._room.set()

    async def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            RookeryError: the sandbox cannot be reached.
        """
        try:
            await self._input.send(data)
        except Exception as error:
            raise failure_of(error, "reach the sandbox") from error

    async def receive(self) -> bytes:
        """All bytes that came and were not taken; empty when it is over. One that is cancelled loses nothing."""
        while not self._came and not self._over:
            self._changed.clear()
            await self._changed.wait()
        came, self._came, self._waiting = self._came, [], 0
        self._room.set()
        return "".join(came).encode()

    async def aclose(self) -> None:
        """Let go of the command. The relay ends it when the next host comes."""
        self._came = []
        self._finish()
        if self._ending is not None:
            self._ending.cancel()
        with anyio.CancelScope(shield=True):
            for close in (self._input.close, self._handle.disconnect):
                with anyio.move_on_after(CLOSE_S):
                    try:
                        await close()
                    except Exception as error:  # whatever broke it, it is to be closed
                        log.debug("wire_not_closed_whole", error=str(error)[:200])
