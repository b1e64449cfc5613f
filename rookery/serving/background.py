"""What every way of serving stands on: the registry's start behind it, signals, and an orderly end.

The end of input, SIGTERM and SIGINT all lead the same way out: the transport stops, calls in flight are cancelled,
and the registry interrupts its agents, flushes their transcripts and ends their processes within bounds of its own.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus

from rookery.backend import BackgroundBackend
from tools.backend import Registry

if TYPE_CHECKING:
    from server.settings import Settings
    from server.telemetry.metrics import Metrics


DRAIN_LOOK_S: Final = 0.1
"""How often a process that leaves looks whether its agents are done."""


def log_to_stderr() -> None:
    """Plain warnings until the background start brings the structured log, whose library takes a while to import."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainJson())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class _PlainJson(logging.Formatter):
    """Lines of the same form as the structured log's."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"level": record.levelname.lower(), "event": super().format(record)})


@asynccontextmanager
async def background(
    settings: Settings, *, on_signal: Callable[[], None], metrics: Metrics | None = None
) -> AsyncIterator[tuple[BackgroundBackend, TaskGroup]]:
    """The backend at work, and a task group for what goes on beside it; on leaving, its registry is closed.

    Signals are taken until the very end: clients that close the input send SIGTERM some two seconds later, and that
    must not cut the closing short.

    Args:
        on_signal: called for each SIGTERM and SIGINT.
        metrics: told what happens; None where nobody asks.
    """

    @asynccontextmanager
    async def opened() -> AsyncIterator[Registry]:
        # In a thread, for the import takes about a second and the event loop has a client to answer.
        open_registry = await anyio.to_thread.run_sync(_prepare, settings)
        counted = {} if metrics is None else {"metrics": metrics}
        async with open_registry(settings, **counted) as registry:
            yield registry

    backend = BackgroundBackend(opened)
    async with anyio.create_task_group() as tasks:
        await tasks.start(_take_signals, on_signal)
        async with anyio.create_task_group() as keeping:
            keeping.start_soon(backend.run)
            try:
                yield backend, tasks
            finally:
                backend.stop()
        tasks.cancel_scope.cancel()


async def drained(backend: BackgroundBackend, seconds: float) -> None:
    """Wait until no agent of this process is in a turn, at most so long."""
    with anyio.move_on_after(seconds):
        while backend.activity.working:  # noqa: ASYNC110 - nothing tells of it, and it happens once
            await anyio.sleep(DRAIN_LOOK_S)


def _prepare(settings: Settings) -> Callable[..., AbstractAsyncContextManager[Registry]]:
    """Everything slow that needs no event loop."""
    from server.telemetry import configure_logging

    configure_logging(settings.log_level)
    from rookery.application import open_registry

    return open_registry


async def _take_signals(act: Callable[[], None], *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            act()
