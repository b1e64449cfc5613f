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

CHUNKS: Final = 16
"""Chunks of output (32 KiB each) that wait for the reader; then the stream is held up, and with it the relay."""


class CommandWire:
    """Made by :meth:`opened`. Implements :class:`.wire.Wire`."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[bytes](CHUNKS)
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
        try:
            await self._send.send(text.encode())
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("wire_closed_before_its_output")

    async def _end(self) -> None:
        try:
            await self._handle.wait()
        except Exception as error:  # the SDK raises bare Exception for a stream without an end
            log.debug("wire_ended", error=str(error)[:200])
        finally:
            self._send.close()

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
        """The next bytes; empty when it is over."""
        try:
            return await self._receive.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return b""

    async def aclose(self) -> None:
        """Let go of the command. The relay ends it when the next host comes."""
        self._receive.close()
        if self._ending is not None:
            self._ending.cancel()
        with anyio.CancelScope(shield=True):
            for close in (self._input.close, self._handle.disconnect):
                with anyio.move_on_after(CLOSE_S):
                    try:
                        await close()
                    except Exception as error:  # whatever broke it, it is to be closed
                        log.debug("wire_not_closed_whole", error=str(error)[:200])
