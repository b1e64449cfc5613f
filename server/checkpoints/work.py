"""Blocking work that can be called off, and what its failures mean to a caller. The standard library only."""

from __future__ import annotations

import errno
from typing import Final

from server.errors import ErrorCode, RookeryError

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


def explained(failure: Exception) -> Exception:
    """What a failure of the work means to its caller: of the file system, or of a tree that does not come to rest."""
    if isinstance(failure, OSError):
        if failure.errno in FULL:
            message = "The disk or its quota is full: free some space, then try again. The files are as they were."
        else:
            message = "The files could not be read or written: see the server's log, then try again."
        told = RookeryError(ErrorCode.STORAGE_UNAVAILABLE, message, detail=repr(failure))
    elif isinstance(failure, TreeMovedError):
        message = "The files changed under the work: let the agent come to rest, then try again."
        told = RookeryError(ErrorCode.SESSION_BUSY, message)
    else:
        return failure
    told.__cause__ = failure
    return told


class DamagedStoreError(RookeryError):
    """A checkpoint's stored content is missing or not what was written: ``storage_unavailable``, for good."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            ErrorCode.STORAGE_UNAVAILABLE,
            "A part of this checkpoint is missing or damaged in the store: use another checkpoint.",
            detail=detail,
            retryable=False,
        )
