"""The daemon's process: one registry, a listener, and a server of MCP for each connection.

It leaves by itself once nobody is connected and every session sleeps, makes way for a client with another version or
other settings while nobody needs it, and refuses such a client while somebody does.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from rookery.backend import BackgroundBackend
from rookery.configuration import load_settings
from rookery.daemon.hello import differing, fingerprints, read_line, write_line
from rookery.daemon.place import LIFE_LOCK, Place, peer_uid
from rookery.serving.background import background, drained, log_to_stderr
from rookery.serving.offering import offered, server_for
from rookery.serving.stdio import serve_messages
from rookery.serving.wire import Wire
from rookery.version import VERSION
from server.errors import RookeryError

if TYPE_CHECKING:
    from server.settings import Settings
    from tools.tool_server import ToolServer

PREDECESSOR_S: Final = 45.0
"""How long a daemon waits for the one before it to be gone: interrupting agents is bounded by less."""

HELLO_S: Final = 5.0
"""Longest that a client may take to say what it wants."""

ROUND_S: Final = 1.0
"""How often the daemon looks whether it is still needed."""

ACCEPT_AGAIN_S: Final = 0.2

MAX_CONNECTIONS: Final = 256

MAX_LOG_BYTES: Final = 16 << 20
"""A longer log is kept as ``log.1``, and a new one begins."""


def run_daemon() -> None:
    """The command ``rookery daemon run``. Writes a line to stdout once clients can connect."""
    settings = load_settings()
    log_to_stderr()
    os.umask(0o077)
    place = Place(settings.home)
    with place.locked(LIFE_LOCK, PREDECESSOR_S) as held:
        if not held:
            sys.stderr.write("Another daemon of this home does not leave; `rookery daemon stop` ends it.\n")
            raise SystemExit(1)
        os.chdir("/")
        with place.listen() as listener:
            anyio.run(Daemon(settings, place, listener).run)
    place.close()


@dataclass
class Daemon:
    """The daemon.

    Args:
        settings: its settings.
        place: where it is found.
        listener: listens there.
    """

    settings: Settings
    place: Place
    listener: socket.socket
    _connections: int = 0
    _leaving: anyio.Event = field(default_factory=anyio.Event)
    _started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _settings: dict[str, str] = field(default_factory=lambda: fingerprints(os.environ))
    _needed_at: float = field(default_factory=time.monotonic)
    _servers: dict[tuple[tuple[str, ...], bool], ToolServer] = field(default_factory=dict)

    async def run(self) -> None:
        """Serve until nobody needs it, or a signal or ``rookery daemon stop`` ends it."""
        self.listener.setblocking(False)
        async with background(self.settings, on_signal=self._leave) as (backend, _):
            _say_ready()
            async with anyio.create_task_group() as connections:
                async with anyio.create_task_group() as rounds:
                    rounds.start_soon(self._accept, connections, backend)
                    rounds.start_soon(self._look_round, backend)
                    await self._leaving.wait()
                    rounds.cancel_scope.cancel()
                # Nobody finds it any more; who is connected but was not answered yet tries again elsewhere.
                self.place.withdraw()
                self.listener.close()
                await drained(backend, self.settings.drain_s)
                connections.cancel_scope.cancel()

    def _leave(self) -> None:
        self._leaving.set()

    async def _accept(self, connections: TaskGroup, backend: BackgroundBackend) -> None:
        while True:
            await anyio.wait_readable(self.listener)
            try:
                connection, _ = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError:
                # No descriptor is left, most likely: who waits is taken when one is.
                await anyio.sleep(ACCEPT_AGAIN_S)
                continue
            connections.start_soon(self._serve, connection, backend)

    async def _serve(self, connection: socket.socket, backend: BackgroundBackend) -> None:
        self._connections += 1
        try:
            with connection:
                chosen = None
                if peer_uid(connection) == os.geteuid():
                    chosen = await self._agreed(connection, backend)
                if chosen is not None:
                    connection.setblocking(False)
                    await self._converse(connection, self._server_of(chosen, backend), backend)
        except Exception as error:
            # Whatever went wrong with one client, the others do not notice.
            sys.stderr.write(f"level=warning event='connection_lost' error={error!r}\n")
        finally:
            self._connections -= 1
            self._needed_at = time.monotonic()

    async def _converse(self, connection: socket.socket, server: ToolServer, backend: BackgroundBackend) -> None:
        answered = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_start_after, answered, backend)
            await serve_messages(server, Wire(connection.fileno(), connection.fileno()), answered)
            tasks.cancel_scope.cancel()

    def _server_of(self, chosen: Settings, backend: BackgroundBackend) -> ToolServer:
        """The server with the tools that a client wants; those who want the same share one."""
        wanted = tuple(sorted(set(chosen.toolsets))), chosen.read_only
        if wanted not in self._servers:
            self._servers[wanted] = server_for(chosen, backend)
        return self._servers[wanted]

    async def _agreed(self, connection: socket.socket, backend: BackgroundBackend) -> Settings | None:
        """Hear what a client wants; the settings that it is to be served with, if it is."""
        connection.settimeout(HELLO_S)
        # In a thread: reading a line without taking a byte more needs a socket that waits.
        said = await anyio.to_thread.run_sync(read_line, connection)
        if said is None:
            return None
        answer = self._answer(said, backend)
        chosen = None
        if answer.get("serves"):
            try:
                chosen = offered(self.settings, dict(said.get("offer") or {}))
            except RookeryError as error:
                answer = {"refusal": error.message}
        write_line(connection, answer)
        return chosen

    def _answer(self, said: dict[str, Any], backend: BackgroundBackend) -> dict[str, Any]:
        match said.get("want"):
            case "status":
                return {"status": self._status(backend)}
            case "stop":
                self._leave()
                return {"leaving": True}
            case "serve":
                return self._service(said, backend)
        return {"refusal": "the client wants something that this daemon does not know; update Rookery."}

    def _service(self, said: dict[str, Any], backend: BackgroundBackend) -> dict[str, Any]:
        leaving = {"leaving": True, "version": VERSION}
        if self._leaving.is_set():
            return leaving
        if self._connections > MAX_CONNECTIONS:
            return {"refusal": f"{MAX_CONNECTIONS} clients are connected already; close some."}
        theirs = {str(name): str(value) for name, value in dict(said.get("settings") or {}).items()}
        other = differing(self._settings, theirs)
        if said.get("rookery") == VERSION and not other:
            return {"serves": True}
        others, agents = self._connections - 1, backend.activity.resident
        if not others and not agents:
            self._leave()
            return leaving
        what = (
            f"is of version {VERSION} and this client of {said.get('rookery')}"
            if said.get("rookery") != VERSION
            else f"was started with another value of {', '.join(other)}"
        )
        return {
            "refusal": f"it {what}, and it is in use ({others} other client(s), {agents} agent(s)). Close the other "
            "clients, or run `rookery daemon stop` (agents at work are interrupted and can be continued), and connect "
            "again; or use `rookery serve` here, which is a server of its own on the same sessions."
        }

    def _status(self, backend: BackgroundBackend) -> dict[str, Any]:
        activity = backend.activity
        return {
            "pid": os.getpid(),
            "version": VERSION,
            "home": str(self.settings.home),
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "clients": self._connections - 1,
            "agents": activity.resident,
            "working": activity.working,
            "settings": sorted(self._settings),
            "leaving": self._leaving.is_set(),
        }

    async def _look_round(self, backend: BackgroundBackend) -> None:
        while True:
            await anyio.sleep(ROUND_S)
            if self._connections or backend.activity.resident:
                self._needed_at = time.monotonic()
            elif time.monotonic() - self._needed_at >= self.settings.daemon_idle_s:
                self._leave()
            with suppress(OSError):
                self._keep_log_short()

    def _keep_log_short(self) -> None:
        status = os.fstat(2)
        if stat.S_ISREG(status.st_mode) and status.st_size > MAX_LOG_BYTES:
            (self.place.path / "log").replace(self.place.path / "log.1")
            fresh = self.place.open_log()
            os.dup2(fresh, 2)
            os.close(fresh)


async def _start_after(answered: anyio.Event, backend: BackgroundBackend) -> None:
    await answered.wait()
    backend.start()


def _say_ready() -> None:
    """Tell the shim that waits, and let go of its pipe."""
    with suppress(OSError):
        os.write(1, b"ready\n")
    os.dup2(2, 1)
