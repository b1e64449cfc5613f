"""``rookery serve``: MCP on the standard streams, for the one client that started it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio

from rookery.backend import BackgroundBackend
from rookery.serving.background import background, log_to_stderr
from rookery.serving.offering import server_for
from rookery.serving.wire import Wire, claimed_wire, stdio_transport
from tools.definition import ToolDefinition
from tools.tool_server import ToolServer

if TYPE_CHECKING:
    from server.settings import Settings


def run_stdio(settings: Settings) -> None:
    """The command ``rookery serve``."""
    log_to_stderr()
    if sys.stdin.isatty():
        sys.stderr.write("Serving MCP on stdin and stdout; an MCP client should start this. Ctrl-D ends it.\n")
    anyio.run(serve_stdio, settings)


async def serve_stdio(settings: Settings, tools: Sequence[ToolDefinition[Any, Any]] | None = None) -> None:
    """Serve one client on the standard streams until its input ends or a signal comes."""
    # The streams are claimed around all else: nothing that starts or ends behind the server may print on the wire.
    with claimed_wire() as wire:
        await _serve_wire(settings, wire, tools)


async def _serve_wire(settings: Settings, wire: Wire, tools: Sequence[ToolDefinition[Any, Any]] | None) -> None:
    serving = anyio.CancelScope()
    async with background(settings, on_signal=serving.cancel) as (backend, tasks):
        answered = anyio.Event()
        tasks.start_soon(_start_after, answered, backend)
        server = server_for(settings, backend, tools=tools)
        with serving:
            await serve_messages(server, wire, answered)


async def serve_messages(server: ToolServer, wire: Wire, answered: anyio.Event) -> None:
    """Serve one client over a wire until it ends.

    Args:
        answered: set once the first message has been written.
    """
    protocol = server.protocol
    async with stdio_transport(wire, answered) as (read_stream, write_stream):
        await protocol.run(read_stream, write_stream, protocol.create_initialization_options())


async def _start_after(answered: anyio.Event, backend: BackgroundBackend) -> None:
    await answered.wait()
    backend.start()
