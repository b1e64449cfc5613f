"""Running a command in a cloud sandbox to its end."""

from __future__ import annotations

import contextlib

import anyio

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import CommandResult
from server.sandboxes.e2b.processes import RemoteProcess


async def run_to_end(process: RemoteProcess, stdin: bytes, timeout_s: float, max_output: int) -> CommandResult:
    """Give a command its input and gather its output; nothing of it is left after that, however it ends.

    Args:
        process: the command, just started.
        stdin: its whole input.
        timeout_s: longest that it may take, in seconds.
        max_output: bytes of stdout that are kept, the first ones.

    Raises:
        RookeryError: ``timeout``, ``sandbox_lost``.
    """
    output = bytearray()
    dropped = False
    try:
        with anyio.move_on_after(timeout_s) as deadline:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_send, process, stdin)
                while piece := await process.read():
                    room = max_output - len(output)
                    output += piece[:room]
                    dropped = dropped or len(piece) > room
                code = await process.wait()
                tasks.cancel_scope.cancel()
    finally:
        await process.terminate(grace=not deadline.cancelled_caught)
    if deadline.cancelled_caught:
        raise RookeryError(ErrorCode.TIMEOUT, f"The command did not end within {timeout_s:g} s, so it was ended.")
    # As a shell tells it: 128 and more for a signal.
    status = 128 - code if code < 0 else code
    return CommandResult(status, bytes(output), process.stderr, truncated=dropped or process.stderr_dropped)


async def _send(process: RemoteProcess, data: bytes) -> None:
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await process.write(data)
    await process.close_input()
