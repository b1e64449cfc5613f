"""Reading an asynchronous stream from a worker thread, as a file would be read."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import anyio.from_thread

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Feed(io.RawIOBase):
    """A file to read, over an asynchronous iterator of chunks, of which it holds one at a time.

    Used in a thread started by ``anyio.to_thread``. An error of the iterator comes out of the read.
    """

    failure: Exception | None = None
    """The error of the iterator, to tell it from those of the reader's own doing."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._rest = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer as far as the present chunk goes; 0 at the end."""
        while not self._rest and not self._ended:
            anyio.from_thread.run(self._advance)
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def _advance(self) -> None:
        try:
            self._rest = memoryview(await anext(self._stream))
        except StopAsyncIteration:
            self._ended = True
        except Exception as error:
            self.failure = error
            raise
