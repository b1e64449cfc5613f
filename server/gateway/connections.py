"""One connection from a sandbox: who is at its other end, how many it may have, how long it may dawdle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket as sockets
import struct
from collections import Counter
from pathlib import Path
from typing import Any, Final

MAX_HEAD: Final = 32 * 1024
"""Bytes of a request's head."""

MAX_CONNECTIONS: Final = 64
"""Connections of one sandbox at a time; the CLI holds one for each running request and a few spare."""

_QUIET: Final = logging.getLogger("server.gateway.http")
"""What uvicorn would print about requests; clients inside sandboxes could fill a log with it."""
_QUIET.setLevel(logging.CRITICAL)


def connection_protocol() -> type[asyncio.Protocol]:
    """A protocol class for one listener, whose connections are counted together."""
    from server.http_protocol import BoundedProtocol

    guests, own = Guests(), _namespace("self")

    class Protocol(BoundedProtocol):
        """One that counts the connections of each sandbox, and has a logger of our own."""

        max_head = MAX_HEAD

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.logger = _QUIET

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
            super().connection_made(Corked(transport, self.loop))
            self.client = None
            try:
                self.client = peer = _peer(transport)
            except ProcessLookupError:
                # Whoever would not be told apart from others could connect so: in a process that is gone at once.
                transport.abort()
                return
            if peer is not None and peer[0] != own and not guests.admit(peer[0]):
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self.client is not None and self.client[0] != own:
                guests.leave(self.client[0])

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

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Whom the transport below tells what comes."""
        return self._transport.get_protocol()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport below knows."""
        return self._transport.get_extra_info(name, default)


def _peer(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """Who is at the other end of a Unix socket: its pid namespace, which every sandbox has one of, and its pid.

    The kernel says it, so nobody can claim to be another. None where it cannot be told, as on a host that hides
    processes from each other.

    Raises:
        ProcessLookupError: the process that connected is gone.
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
    if namespace is not None:
        return namespace, pid
    # The kernel names none (0) of a pid namespace that this one does not see into.
    if pid > 0:
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
    return None


def _namespace(pid: str) -> str | None:
    """The pid namespace of a process."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").stat().st_ino)
    except OSError:
        return None
