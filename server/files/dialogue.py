"""The server's end of the conversation with the files' engine in a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import anyio

from server.errors import ErrorCode, RookeryError
from server.files.frames import FramingError, Kind, Reader, data_frames, decoded, frame, message
from server.sandboxes.base import AgentProcess

SILENCE_S: Final = 600.0
"""Longest wait for one frame: the engine reads or writes a whole tree between two of them."""


class SandboxSystemError(OSError):
    """A failure of the system inside the sandbox, for those who know what to make of its number."""


class Dialogue:
    """One conversation. Not for two tasks at once.

    It is at rest between a whole answer and the next request. Whatever goes wrong in between leaves nobody knowing
    what is due, so that the next request needs another conversation; an error that the engine itself reports need not.
    """

    def __init__(self, process: AgentProcess) -> None:
        self.process = process
        self._reader = Reader()
        self.at_rest = False
        """Whether the next request can be put here."""

    async def send(self, **fields: Any) -> None:
        await self._write(message(fields))

    async def send_data(self, parts: AsyncIterator[bytes] | Iterator[bytes]) -> None:
        """Send data and its end."""
        if isinstance(parts, AsyncIterator):
            async for part in parts:
                for piece in data_frames(part):
                    await self._write(piece)
        else:
            for part in parts:
                for piece in data_frames(part):
                    await self._write(piece)
        await self._write(frame(Kind.END))

    async def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            SandboxSystemError: the engine reports a failure of the system.
            RookeryError: it reports another failure; ``sandbox_lost``: it is gone, or says what makes no sense.
        """
        kind, payload = await self._next()
        return self._message(kind, payload)

    async def receive_data(self) -> AsyncIterator[bytes]:
        """Data up to its end.

        Raises:
            RookeryError: as :meth:`receive`.
        """
        while True:
            kind, payload = await self._next()
            if kind is Kind.END:
                return
            if kind is not Kind.DATA:
                self._message(kind, payload)
                raise self._lost("data was due")
            yield payload

    async def receive_all(self, most: int) -> bytes:
        """Data up to its end, at most ``most`` bytes.

        Raises:
            RookeryError: as :meth:`receive`.
        """
        gathered = bytearray()
        async for part in self.receive_data():
            gathered += part
            if len(gathered) > most:
                raise self._lost("more data than was asked for")
        return bytes(gathered)

    def _message(self, kind: Kind, payload: bytes) -> dict[str, Any]:
        try:
            if kind is not Kind.MESSAGE:
                raise FramingError("a message was due")
            fields = decoded(payload)
            error = fields.get("error")
            if error is None:
                return fields
            self.at_rest = fields.get("ready") is True
            failure = _failure(error)
        except (FramingError, KeyError, TypeError, ValueError) as broken:
            raise self._lost(repr(broken)) from broken
        raise failure

    async def _next(self) -> tuple[Kind, bytes]:
        try:
            while (found := self._reader.next()) is None:
                with anyio.fail_after(SILENCE_S):
                    data = await self.process.read()
                if not data:
                    raise self._lost(f"the engine ended: {self.process.stderr_tail()[-2_000:]}")
                self._reader.feed(data)
        except FramingError as error:
            raise self._lost(str(error)) from error
        except TimeoutError as error:
            raise self._lost("the engine said nothing for a long time") from error
        return found

    async def _write(self, data: bytes) -> None:
        try:
            await self.process.write(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            # What the engine said last may say why; its end is seen by the next reading.
            if self._reader.next() is None:
                raise self._lost(f"the engine reads no more: {self.process.stderr_tail()[-2_000:]}") from error

    def _lost(self, detail: str) -> RookeryError:
        self.at_rest = False
        return RookeryError(
            ErrorCode.SANDBOX_LOST,
            "The files in the sandbox could not be reached: try again; if it stays so, fork one of the checkpoints.",
            detail=detail,
        )


def _failure(error: dict[str, Any]) -> Exception:
    if error.get("errno") is not None:
        failure = SandboxSystemError(int(error["errno"]), str(error["reason"]))
        failure.__cause__ = _told(error)
        return failure
    return _told(error)


def _told(error: dict[str, Any]) -> RookeryError:
    detail = None if error["detail"] is None else f"in the sandbox: {error['detail']}"
    return RookeryError(
        ErrorCode(error["code"]), str(error["message"])[:1_000], detail=detail, retryable=bool(error["retryable"])
    )
