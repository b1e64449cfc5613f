"""Serves an ASGI application over HTTP inside the caller's task group: on a Unix socket, or on loopback for tests.

uvicorn speaks the protocol; its habits of a program of its own are taken off: it installs no signal handlers, prints
nothing, and ends with the scope it runs in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket as sockets
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import structlog
from anyio.abc import TaskStatus

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

HEAD_TIMEOUT_S: Final = 15.0
"""How long a new connection may take until its first request's head is complete (slow-loris, row G02)."""

KEEP_ALIVE_S: Final = 75
"""Idle connections are kept that long: an agent that thinks or runs tools comes back on the one it has."""

MAX_CONNECTIONS: Final = 64
"""Connections of one sandbox at a time; the CLI holds one for each running request and a few spare."""

STOP_TIMEOUT_S: Final = 5.0
BACKLOG: Final = 512
MAX_HEAD: Final = 32 * 1024
"""Bytes of a request's head."""

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
        http=_protocol(),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=MAX_HEAD,
    )
    config.load()

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    server = Server(config)
    server.lifespan = config.lifespan_class(config)
    return server


def _protocol() -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    guests, own = Guests(), _namespace("self")

    class Protocol(H11Protocol):
        """uvicorn's HTTP/1.1 with a deadline for the first head, and with a logger of our own."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.logger = _QUIET
            self._head_deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
            super().connection_made(Corked(transport, self.loop))
            self.client = peer = _peer(transport)
            if peer is not None and peer[0] != own and not guests.admit(peer[0]):
                transport.abort()
                return
            self._head_deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._head_deadline is not None:
                self._head_deadline.cancel()
            super().connection_lost(exc)
            if self.client is not None and self.client[0] != own:
                guests.leave(self.client[0])

        def _give_up(self) -> None:
            # uvicorn declares the attribute without the None that it holds until the first request.
            if cast("object", self.cycle) is None and not self.transport.is_closing():
                self.transport.close()

    return Protocol


class Guests:
    """Counts the connections of each sandbox, so that none can use up the file descriptors of all (row G02)."""

    def __init__(self) -> None:
        self._connections: Counter[str] = Counter()

    def admit(self, peer: str) -> bool:
        """Count one more; whether it is within bounds."""
        self._connections[peer] += 1
        return self._connections[peer] <= MAX_CONNECTIONS

    def leave(self, peer: str) -> None:
        """Count one less."""
        self._connections[peer] -= 1
        if not self._connections[peer]:
            del self._connections[peer]


class Corked(asyncio.Transport):
    """A transport that sends once in each round of the event loop what was written during it.

    A stream comes in many small events, several with each read from the upstream; a system call for each would cost
    more than all else that is done with them.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep until the end of this round."""
        if not data:
            return
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(bytes(data))

    def _send(self) -> None:
        written, self._written = self._written, []
        if written and not self._transport.is_closing():
            self._transport.write(b"".join(written))

    def close(self) -> None:
        """Send what is kept, then close."""
        self._send()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Receive nothing for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport below knows."""
        return self._transport.get_extra_info(name, default)


def _peer(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """Who is at the other end of a Unix socket: its pid namespace, which every sandbox has one of, and its pid.

    The kernel says it, so nobody can claim to be another. None where it cannot be told.
    """
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family != sockets.AF_UNIX:
        return None
    try:
        credentials = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
    except OSError:
        return None
    namespace = _namespace(str(pid))
    return None if namespace is None else (namespace, pid)


def _namespace(pid: str) -> str | None:
    """The pid namespace of a process."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").stat().st_ino)
    except OSError:
        return None


_QUIET: Final = logging.getLogger("server.gateway.http")
"""What uvicorn would print about requests; clients inside sandboxes could fill a log with it."""
_QUIET.setLevel(logging.CRITICAL)
