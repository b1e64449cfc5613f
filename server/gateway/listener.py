"""Serves an ASGI application over HTTP inside the caller's task group: on a Unix socket, or on loopback for tests.

uvicorn speaks the protocol; its habits of a program of its own are taken off: it installs no signal handlers, prints
nothing, and ends with the scope it runs in.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import structlog
from anyio.abc import TaskStatus

from server.gateway.connections import connection_protocol

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

KEEP_ALIVE_S: Final = 75
"""Idle connections are kept that long: an agent that thinks or runs tools comes back on the one it has."""

STOP_TIMEOUT_S: Final = 5.0
BACKLOG: Final = 512
_log = structlog.get_logger(__name__)


def unix_listener(path: Path) -> sockets.socket:
    """A listening Unix socket that every uid may connect to: what guards it is the directory it lies in.

    Raises:
        OSError: the path is taken by something that listens, or cannot be used.
    """
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def loopback_listener(port: int = 0) -> sockets.socket:
    """A listening TCP socket on 127.0.0.1, on a free port by default."""
    listener = sockets.create_server(("127.0.0.1", port), backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def remove_socket(path: Path) -> None:
    """Take the file of a Unix socket away, if it is there."""
    path.unlink(missing_ok=True)


async def serve_app(
    app: ASGIApp,
    listener: sockets.socket,
    *,
    on_stop: Callable[[], None] | None = None,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; then end running requests within :data:`STOP_TIMEOUT_S`. Closes the listener.

    Args:
        app: what answers.
        listener: a listening socket.
        on_stop: called first when the end has come, to make running requests end.
        task_status: told when requests are taken.
    """
    server = _server(app)
    try:
        await server.startup(sockets=[listener])
        task_status.started()
        # uvicorn's main loop only wakes ten times a second for a date header that is off.
        await anyio.sleep_forever()
    finally:
        if on_stop is not None:
            on_stop()
        await _stop(server)
        listener.close()


async def _stop(server: uvicorn.Server) -> None:
    """Take no more, let running requests end, and cancel those that do not. (uvicorn's own way waits in steps of a
    tenth of a second, and without a bound.)"""
    state = server.server_state
    for listening in getattr(server, "servers", ()):
        listening.close()
    for connection in list(state.connections):
        connection.shutdown()
    with anyio.move_on_after(STOP_TIMEOUT_S, shield=True) as scope:
        while state.tasks:
            await asyncio.wait(list(state.tasks))
    if scope.cancelled_caught:
        _log.error("listener_cancelled_requests", requests=len(state.tasks))
        for task in list(state.tasks):
            task.cancel()


def _server(app: ASGIApp) -> uvicorn.Server:
    import uvicorn

    config = uvicorn.Config(
        app,
        http=connection_protocol(),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    config.load()

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    server = Server(config)
    server.lifespan = config.lifespan_class(config)
    return server
