"""Serves MCP on stdio or HTTP: transport, signals, the registry's start behind them, and an orderly end.

The end of input, SIGTERM and SIGINT all lead the same way out: the transport stops, calls in flight are cancelled,
and the registry interrupts its agents, flushes their transcripts and ends their processes within bounds of its own.
"""

from __future__ import annotations

import functools
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus

from rookery.backend import BackgroundBackend
from rookery.configuration import load_settings
from rookery.state_key import state_key
from rookery.stdio import MAX_MESSAGE_BYTES, Wire, claimed_wire, stdio_transport
from tools.backend import Registry
from tools.definition import ToolDefinition
from tools.server import TOOLS, build_server

if TYPE_CHECKING:
    from server.settings import Settings

HTTP_DRAIN_S: Final = 3
"""How long open HTTP requests get at the end."""


def run_stdio() -> None:
    """The command ``rookery serve``."""
    settings = load_settings()
    _log_to_stderr()
    if sys.stdin.isatty():
        sys.stderr.write("Serving MCP on stdin and stdout; an MCP client should start this. Ctrl-D ends it.\n")
    anyio.run(serve_stdio, settings)


def run_http(host: str, port: int, *, announce: Callable[[str], None]) -> None:
    """The command ``rookery serve --http``; see :func:`serve_http`."""
    settings = load_settings()
    _log_to_stderr()
    anyio.run(functools.partial(serve_http, settings, host, port, announce=announce))


def _log_to_stderr() -> None:
    """Plain warnings until the background start brings the structured log, whose library takes a while to import."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="level=%(levelname)s event=%(message)r")


async def serve_stdio(settings: Settings, tools: Sequence[ToolDefinition[Any, Any]] = TOOLS) -> None:
    """Serve one client on the standard streams until its input ends or a signal comes."""
    # The streams are claimed around all else: nothing that starts or ends behind the server may print on the wire.
    with claimed_wire() as wire:
        await _serve_wire(settings, wire, tools)


async def _serve_wire(settings: Settings, wire: Wire, tools: Sequence[ToolDefinition[Any, Any]]) -> None:
    serving = anyio.CancelScope()
    async with _background(settings, on_signal=serving.cancel) as (backend, tasks):
        answered = anyio.Event()
        tasks.start_soon(_start_after, answered, backend)
        server = build_server(backend, max_wait_s=settings.max_wait_s, tools=tools, state_key=state_key(settings.home))
        # The SDK's public entry takes no streams of one's own; this is the one private name of it that is used.
        protocol = server._lowlevel_server
        with serving:
            async with stdio_transport(wire, answered) as (read_stream, write_stream):
                await protocol.run(read_stream, write_stream, protocol.create_initialization_options())


async def serve_http(settings: Settings, host: str, port: int, *, announce: Callable[[str], None]) -> None:
    """Serve any number of clients over streamable HTTP until a signal comes.

    Args:
        host: a name of this machine's loopback, see :func:`is_loopback`.
        port: the port; 0 takes a free one.
        announce: told the URL once clients can connect.

    Raises:
        OSError: the port cannot be bound.
    """
    import uvicorn
    from mcp.server.transport_security import TransportSecuritySettings

    class HttpServer(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave signals alone: uvicorn would raise them again at its end, before the registry has closed."""
            yield

    address = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as listener:
        names = [f"[{name}]" if ":" in name else name for name in dict.fromkeys((address, "localhost", "127.0.0.1"))]
        http: uvicorn.Server | None = None

        def leave() -> None:
            if http is not None:
                http.should_exit = True

        async with _background(settings, on_signal=leave) as (backend, _):
            app = build_server(
                backend, max_wait_s=settings.max_wait_s, state_key=state_key(settings.home)
            ).streamable_http_app(
                host=address,
                max_request_body_size=MAX_MESSAGE_BYTES,
                # Said explicitly: no page in a browser may reach the server by a name that it has rebound (P06).
                transport_security=TransportSecuritySettings(
                    enable_dns_rebinding_protection=True,
                    allowed_hosts=[f"{name}:*" for name in names],
                    allowed_origins=[f"http://{name}:*" for name in names],
                ),
            )
            http = HttpServer(
                uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=HTTP_DRAIN_S)
            )
            backend.start()
            announce(f"http://{names[0]}:{listener.getsockname()[1]}/mcp")
            await http.serve(sockets=[listener])


def is_loopback(host: str) -> bool:
    """Whether a host reaches this machine only. No authentication exists yet, so nothing else is served (P09)."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@asynccontextmanager
async def _background(
    settings: Settings, *, on_signal: Callable[[], None]
) -> AsyncIterator[tuple[BackgroundBackend, TaskGroup]]:
    """The backend at work, and a task group for what goes on beside it; on leaving, its registry is closed.

    Signals are taken until the very end: clients that close the input send SIGTERM some two seconds later, and that
    must not cut the closing short.
    """

    @asynccontextmanager
    async def opened() -> AsyncIterator[Registry]:
        # In a thread, for the import takes about a second and the event loop has a client to answer.
        open_registry = await anyio.to_thread.run_sync(_prepare, settings)
        async with open_registry(settings) as registry:
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


def _prepare(settings: Settings) -> Callable[[Settings], AbstractAsyncContextManager[Registry]]:
    """Everything slow that needs no event loop."""
    from server.telemetry import configure_logging

    configure_logging(settings.log_level)
    from rookery.application import open_registry

    return open_registry


async def _start_after(answered: anyio.Event, backend: BackgroundBackend) -> None:
    await answered.wait()
    backend.start()


async def _take_signals(act: Callable[[], None], *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            act()
