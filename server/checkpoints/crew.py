"""Threads that help one worker with the files of a tree: copying waits for the kernel, which serves several at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

from server.checkpoints.work import Stop, StoppedError

MAX_HANDS: Final = 4
"""Most threads of one crew."""

MAX_WAITING: Final = 64
"""Jobs given and not done; each may hold a descriptor."""


class Crew:
    """Does jobs beside its owner, within a ``with`` block: at its end all are done, or the first failure is raised.

    A job that fails sets ``stop``, so that the others end at their next look at it. Every job is begun, whatever
    happens, so that each can give back what it holds.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._room = threading.Semaphore(MAX_WAITING)
        self._pool = ThreadPoolExecutor(min(MAX_HANDS, os.cpu_count() or 1), "checkpoints")
        self._failure: BaseException | None = None

    def give(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        """Have ``work`` done; waits while too many jobs do. What is returned tells when it is over, however it went."""
        self._room.acquire()
        try:
            return self._pool.submit(self._do, work, arguments)
        except BaseException:
            self._room.release()
            raise

    def _do(self, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        try:
            work(*arguments)
        except StoppedError:
            # Called off, or the follow-up of another job's failure, which is the one to tell of.
            pass
        except BaseException as error:
            if self._failure is None:
                self._failure = error
            self._stop.set()
        finally:
            self._room.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop.set()
        self._pool.shutdown(wait=True)
        if self._failure is not None and (error is None or isinstance(error, StoppedError)):
            raise self._failure
        if error is None:
            self._stop.check()
