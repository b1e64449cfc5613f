"""A command whose whole life is one stream: input in, output out, its status in the end. It dies with the stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

from server.sandboxes.e2b.relay.attended import DRAIN_S, Attended
from server.sandboxes.e2b.relay.children import ROOT, TERM_GRACE_S, Children, Identity, StartError, request_of
from server.sandboxes.e2b.relay.frames import PIECE, Frame
from server.sandboxes.e2b.relay.mux import Stream, StreamClosedError


async def run_command(children: Children, stream: Stream, frame: Frame, agent: Identity) -> None:
    """Run what a frame asks for, to its end.

    The payload is JSON: ``argv``, ``env``, ``cwd``, ``root``, ``limits``, ``seccomp`` (hexadecimal), ``stderr`` (bytes
    of its end that are kept).
    """
    try:
        request = request_of(json.loads(frame.payload))
        child = start_child(children, request, ROOT if request.get("root") is True else agent)
    except StartError as error:
        stream.exit(str(error).encode(), code=error.code)
        return
    attended = Attended(children, child, stderr_kept=int(request.get("stderr", 16384)))
    stream.on_close = lambda: attended.terminate(0)
    stream.on_signal = lambda signal: attended.terminate(TERM_GRACE_S if signal.text("what") == "terminate" else 0)
    feeding = asyncio.ensure_future(_feed(stream, child.stdin))
    reading = asyncio.ensure_future(_forward(child.stdout, stream))
    try:
        await attended.ended()
        await asyncio.wait([reading], timeout=None if stream.writable else DRAIN_S)
    finally:
        for task in (feeding, reading):
            task.cancel()
        await asyncio.wait([feeding, reading])
        await attended.close()
    stream.on_close = None
    stream.exit(attended.stderr, code=child.status, dropped=attended.stderr_dropped)


def start_child(children: Children, request: dict[str, Any], identity: Identity) -> Any:
    """Start what a checked request describes.

    Raises:
        StartError: it was not started.
    """
    return children.start(
        request["argv"],
        request["env"],
        str(request.get("cwd", "/")),
        identity,
        limits=request.get("limits", {}),
        seccomp=bytes.fromhex(request.get("seccomp", "")),
    )


async def _feed(stream: Stream, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    try:
        while True:
            data = await stream.read()
            if not data:
                break
            await loop.sock_sendall(sink, data)
    except StreamClosedError:
        return
    except OSError:
        stream.signal("deaf")
        # What still comes is taken and dropped, so that the other end does not wait for room.
        try:
            while await stream.read():
                pass
        except StreamClosedError:
            pass
        return
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


async def _forward(source: socket.socket, stream: Stream) -> None:
    loop = asyncio.get_running_loop()
    try:
        while True:
            data = await loop.sock_recv(source, PIECE)
            if not data:
                return
            await stream.write(data)
    except (OSError, StreamClosedError):
        return
