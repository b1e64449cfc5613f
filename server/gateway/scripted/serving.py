"""Runs the scripted model: as an upstream for the gateway, or on a port of its own."""

from __future__ import annotations

import socket as sockets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskStatus

from server.gateway.listener import serve_app, unix_listener
from server.gateway.scripted.answers import ScriptedModel
from server.gateway.scripted.app import ScriptedApp
from server.gateway.scripted.scenario import Scenario
from server.gateway.upstream import Upstream

if TYPE_CHECKING:
    from server.settings import Settings


async def serve_scripted(
    listener: sockets.socket,
    scenario: Scenario | None = None,
    *,
    task_status: TaskStatus[ScriptedApp] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the scripted model until cancelled.

    Args:
        listener: a listening socket (:func:`~server.gateway.listener.loopback_listener`, or of a Unix socket).
        scenario: played for prompts that carry none of their own.
        task_status: told the application when requests are taken.
    """
    app = ScriptedApp(ScriptedModel(scenario))
    async with anyio.create_task_group() as group:
        await group.start(_serve, app, listener)
        task_status.started(app)


async def _serve(
    app: ScriptedApp, listener: sockets.socket, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    await serve_app(app, listener, task_status=task_status)


@asynccontextmanager
async def scripted_upstream(settings: Settings, directory: Path) -> AsyncIterator[Upstream]:
    """The scripted model behind a Unix socket of its own in ``directory``, as an upstream for the gateway.

    Raises:
        RookeryError: ``invalid_argument``: ``ROOKERY_SCENARIO`` is no scenario.
    """
    scenario = Scenario.load(settings.scenario) if settings.scenario is not None else None
    socket = directory / "model.sock"
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        await group.start(serve_scripted, unix_listener(socket), scenario)
        try:
            yield Upstream(base_url="http://scripted.model", socket=socket, trust_env=False)
        except Exception as error:
            # Raised again outside: the caller's own error shall not come out wrapped in a group.
            failure = error
        group.cancel_scope.cancel()
    socket.unlink(missing_ok=True)
    if failure is not None:
        raise failure
