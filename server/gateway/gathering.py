"""Takes together what of a stream is there at once, so that it is passed on in one piece."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import anyio

MOST_GATHERED: Final = 256 * 1024
"""Bytes that are read ahead of a reader who is slow; then the upstream waits as well."""


class Gathering:
    """Reads chunks in one task while another one hands on what came.

    A model sends an event for every few letters, and dozens of them come with one read of a socket. To pass each on
    by itself costs both sides more than all else that is done with it. Nothing waits to be gathered: what is there
    when its reader is free goes on at once.

    Args:
        chunks: where they come from.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._pieces: list[bytes] = []
        self._size = 0
        self._over = False
        self._error: Exception | None = None
        self._came = anyio.Event()
        self._taken = anyio.Event()

    async def each(self, handle: Callable[[bytes], Awaitable[None]]) -> None:
        """Hand on all that comes, in its order.

        Raises:
            Exception: what the chunks raised, after what came before it was handed on; and what ``handle`` raises.
        """
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read)
            try:
                while (piece := await self._next()) is not None:
                    await handle(piece)
            except Exception as error:
                # Not through the group, which would wrap it.
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if self._error is not None:
            raise self._error

    async def _next(self) -> bytes | None:
        while not self._pieces:
            if self._over:
                return None
            await self._came.wait()
        self._came = anyio.Event()
        self._taken.set()
        return self.rest()

    def rest(self) -> bytes:
        """Take what came and was not handed on yet."""
        pieces, self._pieces, self._size = self._pieces, [], 0
        return b"".join(pieces)

    async def _read(self) -> None:
        try:
            async for chunk in self._chunks:
                self._pieces.append(chunk)
                self._size += len(chunk)
                if len(self._pieces) == 1:
                    self._came.set()
                while self._size >= MOST_GATHERED:
                    self._taken = anyio.Event()
                    await self._taken.wait()
        except Exception as error:
            self._error = error
        finally:
            self._over = True
            self._came.set()
