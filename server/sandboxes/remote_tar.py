"""Workspaces in and out of a sandbox that has no directory on this host, as one compressed stream."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import anyio
import anyio.to_thread

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import WORKSPACE, AgentProcess
from server.sandboxes.shipping import ROOM, Program, RootSandbox
from server.sandboxes.tarring import FAILED, GZIP, LEVEL, MISSING, REFUSED

TARRING: Final = Program(
    "tarring",
    ("server.sandboxes.archive", "server.sandboxes.tarring", "server.sandboxes.tree"),
    "server.sandboxes.tarring",
)
"""The program that does it inside."""

_STEP: Final = 1 << 20


async def pack_remote(
    sandbox: RootSandbox, path: str, limit: int, *, workspace: str = WORKSPACE, room: str = ROOM
) -> AsyncIterator[bytes]:
    """What lies at a path of the workspace as a tar stream; it crosses the network compressed.

    Args:
        sandbox: where.
        path: below the workspace.
        limit: most bytes of the tar stream.

    Raises:
        RookeryError: ``invalid_argument``: there is no such path, or it holds too much; ``storage_unavailable``,
            ``sandbox_lost``, ``sandbox_unavailable``.
    """
    await TARRING.ensure(sandbox, room)
    process = await TARRING.start(sandbox, ["pack", workspace, path, str(limit)], room)
    try:
        await process.close_input()
        decompressor = zlib.decompressobj(wbits=GZIP)
        total = 0
        while data := await process.read():
            while data:
                piece = await anyio.to_thread.run_sync(partial(_decompressed, decompressor, data))
                data = decompressor.unconsumed_tail
                total += len(piece)
                if total > limit:
                    raise RookeryError(ErrorCode.INVALID_ARGUMENT, "Nothing was packed: the content is too large.")
                if piece:
                    yield piece
        _check(await process.wait(), process, "Nothing was packed")
        if not decompressor.eof:
            raise _lost("the stream ended too early")
    finally:
        await _end(process)


def _decompressed(decompressor: zlib._Decompress, data: bytes) -> bytes:
    try:
        return decompressor.decompress(data, _STEP)
    except zlib.error as error:
        raise _lost(f"the stream is damaged: {error}") from error


async def unpack_remote(
    sandbox: RootSandbox,
    stream: AsyncIterator[bytes],
    *,
    owner: int,
    limit: int,
    workspace: str = WORKSPACE,
    room: str = ROOM,
) -> None:
    """Write a tar stream into the workspace; it crosses the network compressed.

    Args:
        sandbox: where.
        stream: the archive; what it raises ends the work.
        owner: uid and gid of what is written.
        limit: most bytes of content.

    Raises:
        RookeryError: ``invalid_argument``: an entry is refused, what came before it stays; ``storage_unavailable``,
            ``sandbox_lost``, ``sandbox_unavailable``.
    """
    await TARRING.ensure(sandbox, room)
    process = await TARRING.start(sandbox, ["unpack", workspace, str(owner), str(limit)], room)
    try:
        compressor = zlib.compressobj(LEVEL, wbits=GZIP)
        try:
            async for chunk in stream:
                if data := await anyio.to_thread.run_sync(compressor.compress, chunk):
                    await process.write(data)
            await process.write(compressor.flush())
            await process.close_input()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            # It has said no before the end; its status tells why.
            pass
        while await process.read():
            pass
        _check(await process.wait(), process, "The workspace was not filled")
    finally:
        await _end(process)


def _check(status: int, process: AgentProcess, what: str) -> None:
    said = process.stderr_tail()[-500:]
    if status == REFUSED:
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"{what}: {said}.")
    if status == MISSING:
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, "There is no such path in the workspace.")
    if status == FAILED:
        raise RookeryError(
            ErrorCode.STORAGE_UNAVAILABLE, "The disk of the sandbox is full or failing.", detail=f"{what}: {said}"
        )
    if status != 0:
        raise _lost(f"{what}: status {status}: {said}")


def _lost(detail: str) -> RookeryError:
    return RookeryError(
        ErrorCode.SANDBOX_LOST, "The files in the sandbox could not be reached: try again.", detail=detail
    )


async def _end(process: AgentProcess) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(10):
        await process.terminate()
