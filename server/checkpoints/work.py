"""Blocking work in a worker thread that can be called off, and what its failures mean to a caller."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from server.errors import ErrorCode, RookeryError

T = TypeVar("T")

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when there is no room: disk, quota, file size."""


class StoppedError(Exception):
    """Raised in the worker thread when its caller was cancelled."""


class TreeMovedError(Exception):
    """Raised in the worker thread when a directory was replaced while it was at work in it."""


class Stop:
    """A flag that the worker looks at between small pieces of work (one file, one chunk, one directory)."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def check(self) -> None:
        """Raises: StoppedError: the caller no longer wants the result."""
        if self._set:
            raise StoppedError


def storage_error(error: OSError) -> RookeryError:
    """What an unexpected failure of the file system means to the caller."""
    if error.errno in FULL:
        message = "The disk or its quota is full: free some space, then try again. The files are as they were."
    else:
        message = "The files could not be read or written: see the server's log, then try again."
    return RookeryError(ErrorCode.STORAGE_UNAVAILABLE, message, detail=repr(error))


class DamagedStoreError(RookeryError):
    """A checkpoint's stored content is missing or not what was written: ``storage_unavailable``, for good."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            ErrorCode.STORAGE_UNAVAILABLE,
            "A part of this checkpoint is missing or damaged in the store: use another checkpoint.",
            detail=detail,
            retryable=False,
        )


async def run_blocking(function: Callable[[Stop], T], limiter: anyio.CapacityLimiter) -> T:
    """Run ``function`` in a worker thread; on cancellation tell it to stop, and wait until it has.

    The thread never outlives this call, so nothing is written to a tree behind the caller's back.

    Raises:
        RookeryError: raised by the function, or ``storage_unavailable`` for an ``OSError``.
    """
    stop = Stop()
    result: list[T] = []
    failure: BaseException | None = None

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
    if isinstance(failure, OSError):
        raise storage_error(failure) from failure
    if isinstance(failure, TreeMovedError):
        raise RookeryError(
            ErrorCode.SESSION_BUSY, "The files changed under the work: let the agent come to rest, then try again."
        ) from failure
    if failure is not None:
        raise failure
    return result[0]
