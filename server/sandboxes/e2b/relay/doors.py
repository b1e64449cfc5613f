"""Sockets inside the sandbox whose connections are carried to the host: the model gateway's, and the egress proxy's.

While there is no host, connections wait: an agent whose host was started anew goes on where it stood.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from pathlib import Path

from server.sandboxes.e2b.relay.frames import PIECE
from server.sandboxes.e2b.relay.mux import Mux, Stream, StreamClosedError

BACKLOG = 128

MAX_CONNECTIONS = 200
"""Connections that a door serves at once; further ones wait in its backlog."""

HOST_WAIT_S = 900.0
"""How long a connection waits for a host."""


class Door:
    """One listening socket.

    Args:
        to: what the host calls its other end.
        uid: whose connections are taken, beside root's; None: anybody's.
    """

    def __init__(self, mux: Mux, listener: socket.socket, to: str, *, uid: int | None = None) -> None:
        self._mux = mux
        self._listener = listener
        self._to = to
        self._uid = uid
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.ensure_future(self._accept())

    def close(self) -> None:
        """Take no more, and end what runs."""
        self._accepting.cancel()
        for task in self._tasks:
            task.cancel()
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError:
                self._places.release()
                await asyncio.sleep(0.1)
                continue
            connection.setblocking(False)
            if self._uid is not None and peer(connection)[1] not in (0, self._uid):
                connection.close()
                self._places.release()
                continue
            task = asyncio.ensure_future(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()

    async def _serve(self, connection: socket.socket) -> None:
        try:
            await asyncio.wait_for(self._mux.connected.wait(), HOST_WAIT_S)
            await carry(connection, self._mux.open(self._to))
        except asyncio.TimeoutError:
            pass
        finally:
            connection.close()


async def carry(connection: socket.socket, stream: Stream) -> None:
    """Carry bytes between a connection and a stream until both directions are over, or one breaks."""
    loop = asyncio.get_running_loop()

    def cut() -> None:
        # Both directions stand at the socket or at the stream: either way they notice.
        if stream.why is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    async def outward() -> None:
        try:
            while True:
                data = await loop.sock_recv(connection, PIECE)
                if not data:
                    stream.end()
                    return
                await stream.write(data)
        except OSError:
            stream.reset("the connection broke")
        except StreamClosedError:
            pass

    async def inward() -> None:
        try:
            while True:
                data = await stream.read()
                if not data:
                    connection.shutdown(socket.SHUT_WR)
                    return
                await loop.sock_sendall(connection, data)
        except OSError:
            stream.reset("the connection broke")
        except StreamClosedError:
            pass

    stream.on_close = cut
    tasks = [asyncio.ensure_future(outward()), asyncio.ensure_future(inward())]
    try:
        await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
        stream.reset("the connection is over")


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a Unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid


def unix_listener(path: Path, mode: int) -> socket.socket:
    """A listening Unix socket in place of what was there."""
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener.bind(str(path))
    path.chmod(mode)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def loopback_listener(port: int) -> socket.socket:
    """A listening socket on the sandbox's own loopback."""
    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it; asyncio sets it only on sockets that name their protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener
