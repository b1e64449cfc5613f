"""Starts the registry behind the MCP server's back, once the client has its answer to ``initialize``.

All that is slow (the SDK, SQLAlchemy, migrations, recovery) happens here. Tool calls wait for it; a start that failed
is each call's answer, and a later call tries again, so that a person can mend the cause without restarting a client.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import anyio

from server.errors import ErrorCode, RookeryError
from server.views import Activity
from tools.backend import Registry

logger = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 3.0
"""After a failed start, calls are answered from memory for this long: a burst of them is one attempt."""

START_TIMEOUT_S: Final = 60.0
"""Longest that a call waits for the start; migrations of a large store take seconds."""


class BackgroundBackend:
    """A :class:`~tools.backend.Backend` that opens its registry on the first occasion.

    Args:
        open_registry: opens it; the context lasts until :meth:`stop`.
    """

    def __init__(self, open_registry: Callable[[], AbstractAsyncContextManager[Registry]]) -> None:
        self._open_registry = open_registry
        self._wanted = anyio.Event()
        self._settled = anyio.Event()
        self._stopping = anyio.Event()
        self._registry: Registry | None = None
        self._error: RookeryError | None = None
        self._failed_at = 0.0

    @property
    def activity(self) -> Activity:
        """What the agents of this process do; nothing before the registry serves."""
        return Activity() if self._registry is None else self._registry.activity

    @property
    def is_ready(self) -> bool:
        """Whether the registry serves now."""
        return self._registry is not None and not self._stopping.is_set()

    def failed(self, code: ErrorCode) -> None:
        """Note that a call was answered with an error; forgotten while there is no registry."""
        if self._registry is not None:
            self._registry.failed(code)

    def start(self) -> None:
        """Begin to open the registry, if that has not been done."""
        self._wanted.set()

    async def registry(self) -> Registry:
        """See :meth:`tools.backend.Backend.registry`."""
        if self._registry is not None and self._settled.is_set():
            return self._registry
        if self._error is not None and time.monotonic() - self._failed_at >= RETRY_AFTER_S:
            self._error, self._settled = None, anyio.Event()
        if self._error is None:
            self.start()
            with anyio.move_on_after(START_TIMEOUT_S):
                await self._settled.wait()
        if self._registry is not None:
            return self._registry
        if self._error is not None:
            # A fresh exception for each call: one instance would gather the traces of all.
            error = self._error
            raise RookeryError(error.code, error.message, detail=error.detail, retryable=error.retryable)
        raise RookeryError(
            ErrorCode.TIMEOUT, "Rookery is still starting (it may be migrating a large store); try again in a minute."
        )

    def stop(self) -> None:
        """Have ``run`` close the registry and return."""
        self._stopping.set()
        self._wanted.set()

    async def run(self) -> None:
        """Open the registry when it is wanted and keep it until :meth:`stop`.

        The registry closes in an orderly way only when it is not cancelled: its agents' tasks lie within its own
        scope, and a cancellation from outside reaches them all at once.
        """
        while True:
            await self._wanted.wait()
            if self._stopping.is_set():
                return
            try:
                async with self._open_registry() as registry:
                    self._registry = registry
                    self._settled.set()
                    await self._stopping.wait()
            except Exception as error:
                self._not_started(error)

    def _not_started(self, error: Exception) -> None:
        self._registry = None
        self._error = _as_start_error(error)
        self._failed_at = time.monotonic()
        if not self._stopping.is_set():
            self._wanted = anyio.Event()
        self._settled.set()
        logger.error("the registry could not start: %s", self._error, exc_info=error)


def _as_start_error(error: BaseException) -> RookeryError:
    """The typed error within what a start raised; task groups wrap it."""
    if isinstance(error, RookeryError):
        return error
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            found = _as_start_error(member)
            if found.code is not ErrorCode.INTERNAL:
                return found
    return RookeryError(
        ErrorCode.INTERNAL,
        "Rookery could not start. Run `rookery doctor` to find out why; the server's log holds the details.",
        retryable=True,
    )
