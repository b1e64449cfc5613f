"""Running blocking work in a worker thread, so that it can be cancelled and never goes on unseen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from server.checkpoints.work import Stop, StoppedError, explained

T = TypeVar("T")


async def run_blocking(function: Callable[[Stop], T], limiter: anyio.CapacityLimiter) -> T:
    """Run ``function`` in a worker thread; on cancellation tell it to stop, and wait until it has.

    The thread never outlives this call, so nothing is written to a tree behind the caller's back.

    Raises:
        RookeryError: raised by the function, or ``storage_unavailable`` for an ``OSError``.
    """
    stop = Stop()
    result: list[T] = []
    failure: Exception | None = None

    async def watch() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stop.set()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        with anyio.CancelScope(shield=True):
            try:
                result.append(await anyio.to_thread.run_sync(function, stop, limiter=limiter))
            except Exception as error:
                # Kept aside: an exception that left the task group would come out wrapped in a group.
                failure = error
        group.cancel_scope.cancel()
    if isinstance(failure, StoppedError):
        await anyio.lowlevel.checkpoint_if_cancelled()
    if failure is not None:
        raise explained(failure) from failure.__cause__
    return result[0]
