"""A relay without a cloud: the real program, started as a process of this machine, and wires to it.

Needs root, for a relay starts its processes as another user; every test that uses it is skipped otherwise.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio

from server.concurrency import background_tasks
from server.errors import ErrorCode, RookeryError
from server.sandboxes.e2b.bundle import relay_bundle
from server.sandboxes.e2b.channel import Channel, Destination

UID = 1100


@dataclass
class LocalRelay:
    """A running relay."""

    directory: Path
    gateway: Path
    egress_port: int
    kept: int | None = None
    """Bytes of the agent's output that it keeps; None: as many as it does by itself."""

    @property
    def socket(self) -> Path:
        """Where it waits for its host."""
        return self.directory / "private" / "relay.sock"

    @property
    def archive(self) -> Path:
        """The program."""
        return self.directory / "relay.pyz"

    def kept_now(self) -> int:
        """Bytes of the agent's output that lie on its disk."""
        return sum(file.stat().st_size for file in (self.directory / "state" / "output").iterdir())

    @property
    def config(self) -> Path:
        """The agent's configuration directory."""
        return self.directory / "config"

    def start(self) -> None:
        """Start it, unless it runs."""
        bundle = relay_bundle()
        self.archive.write_bytes(bundle.data)
        settings = {
            "socket": str(self.socket),
            "directory": str(self.directory / "state"),
            "gateway": str(self.gateway),
            "config": str(self.config),
            "egress_port": self.egress_port,
            "uid": UID,
            "gid": UID,
            "build": bundle.build,
            **({} if self.kept is None else {"kept": self.kept}),
        }
        command = [sys.executable, "-I", str(self.archive), "start", json.dumps(settings)]
        subprocess.run(command, check=True, timeout=30, cwd="/")

    def processes(self) -> list[int]:
        """Its own process and its clients."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.archive).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def kill(self) -> None:
        """End it."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def local_relay(kept: int | None = None) -> Iterator[LocalRelay]:
    """A running relay, ended at the end."""
    with tempfile.TemporaryDirectory(prefix="relay-") as name, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        directory = Path(name)
        directory.chmod(0o755)
        relay = LocalRelay(directory, directory / "public" / "gateway.sock", port, kept)
        relay.start()
        try:
            yield relay
        finally:
            relay.kill()


class SocketWire:
    """A wire that needs no client program: the host is on the same machine. ``cut`` breaks it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._path = path

    async def connected(self) -> SocketWire:
        """The wire, connected.

        Raises:
            RookeryError: ``sandbox_lost``: no relay answers.
        """
        try:
            self._socket.connect(str(self._path))
        except OSError as error:
            raise RookeryError(ErrorCode.SANDBOX_LOST, "The relay is gone.", detail=str(error)) from error
        self._socket.setblocking(False)
        return self

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)

    async def receive(self) -> bytes:
        while True:
            try:
                return self._socket.recv(262144)
            except BlockingIOError:
                try:
                    await anyio.wait_readable(self._socket)
                except anyio.ClosedResourceError:
                    return b""
            except OSError:
                return b""

    def cut(self) -> None:
        """Break it, as a network does."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()


class ProcessWire:
    """A wire through the relay's own client program, as a cloud's command service would run it."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self._process = process

    async def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise OSError("the client is gone") from error

    async def receive(self) -> bytes:
        assert self._process.stdout is not None
        try:
            return await self._process.stdout.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return b""

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            if self._process.returncode is None:
                self._process.kill()
            await self._process.aclose()


class Host:
    """A host of a local relay: a channel, and the wires that it made."""

    def __init__(self, relay: LocalRelay, doors: dict[str, Destination]) -> None:
        self.wires: list[SocketWire] = []
        self._relay = relay
        self.channel = Channel(self._connect, doors)
        self.reachable = anyio.Event()
        self.reachable.set()

    async def _connect(self) -> SocketWire:
        await self.reachable.wait()
        wire = await SocketWire(self._relay.socket).connected()
        self.wires.append(wire)
        return wire

    def cut(self) -> None:
        """Break the present wire."""
        self.wires[-1].cut()


@asynccontextmanager
async def host_of(relay: LocalRelay, **doors: Destination) -> AsyncIterator[Host]:
    """A host that is connected; it leaves without a word, as a killed one does."""
    async with background_tasks() as tasks:
        host = Host(relay, doors)
        tasks.start_soon(host.channel.run)
        with anyio.fail_after(20):
            await host.channel.ready()
        yield host
