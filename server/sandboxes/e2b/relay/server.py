"""The relay itself: waits for its host on a socket that only root can reach, and serves what it asks for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from server.sandboxes.e2b.relay.agent import KEPT, AgentKeeper, renew_directory
from server.sandboxes.e2b.relay.children import Children, Identity, StartError
from server.sandboxes.e2b.relay.commands import run_command
from server.sandboxes.e2b.relay.doors import Door, loopback_listener, peer, unix_listener
from server.sandboxes.e2b.relay.frames import Decoder, Frame, ProtocolError, encode
from server.sandboxes.e2b.relay.mux import Mux, Stream

VERSION = 1
"""Of the conversation. A host that speaks another one does not talk to a running relay."""

READ_SIZE = 256 * 1024
HELLO_S = 10.0

HOST_AWAY_S = 900.0
"""After so long without a host, what belongs to its life is over: commands, connections. The agent stays."""

PAST_HOSTS = 64
"""Hosts that were succeeded, by the latest ones: they are not let in again."""


class Settings:
    """Where the relay has its things; all from its command line, as JSON."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.socket = Path(given["socket"])
        self.directory = Path(given["directory"])
        self.gateway = Path(given["gateway"])
        self.config = Path(given["config"])
        self.egress_port = int(given["egress_port"])
        self.agent = Identity(int(given["uid"]), int(given["gid"]))
        self.build = str(given.get("build", ""))
        self.kept = int(given.get("kept", KEPT))
        """Bytes of the agent's output that are kept at most."""


class Relay:
    """One relay for one sandbox."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._children = Children()
        self._mux = Mux(1, self._opened, text=True)
        self._keeper = AgentKeeper(self._children, settings.directory, settings.agent, settings.kept)
        self._host = ""
        self._client: int | None = None
        self._connection: socket.socket | None = None
        self._egress: Door | None = None
        self._egress_users = 0
        self._agent_egress = False
        self._past_hosts: deque[str] = deque(maxlen=PAST_HOSTS)
        self._tasks: set[asyncio.Future[Any]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Serve until killed."""
        loop = asyncio.get_running_loop()
        Door(self._mux, unix_listener(self._settings.gateway, 0o666), "gateway", uid=self._settings.agent.uid)
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            pid, uid = peer(connection)
            if uid != 0:
                connection.close()
                continue
            self._spawn(self._greet(connection, pid))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- connections ------------------------------------------------------------------------------------------

    async def _greet(self, connection: socket.socket, pid: int) -> None:
        """Take a connection: the host is at the other end of it from now on, if it says hello."""
        loop = asyncio.get_running_loop()
        decoder = Decoder()
        frames: list[Frame] = []
        try:
            while not frames:
                data = await asyncio.wait_for(loop.sock_recv(connection, READ_SIZE), HELLO_S)
                if not data:
                    raise ProtocolError("no hello")
                frames = decoder.push(data)
            hello = frames.pop(0)
            if hello.kind != "hello":
                raise ProtocolError("no hello")
            if hello.text("host") in self._past_hosts:
                # Its successor is here: they must not take the sandbox from each other for ever.
                await loop.sock_sendall(connection, encode(Frame("hello", {"refused": True}), text=True))
                return
            self._displace()
            same = hello.text("host") == self._host and bool(self._host)
            if not same:
                if self._host:
                    self._past_hosts.append(self._host)
                self._host = hello.text("host")
                self._mux.begin()
            self._connection, self._client = connection, pid
            about: dict[str, Any] = {"same": same, "received": self._mux.link.received, "version": VERSION}
            about.update(machine=platform.machine(), build=self._settings.build)
            await loop.sock_sendall(connection, encode(Frame("hello", about), text=True))
            number = self._mux.attach(hello.number("received") if same else 0)
            await self._converse(connection, number, decoder, frames)
        except (OSError, ProtocolError, asyncio.TimeoutError):
            pass
        finally:
            if self._connection is connection:
                self._connection = self._client = None
                self._mux.detach()
                loop.call_later(HOST_AWAY_S, self._give_up, self._host)
            connection.close()

    def _displace(self) -> None:
        """End the last connection. Its client may hang on a stream that nobody reads, so it is killed."""
        if self._connection is None:
            return
        self._mux.detach()
        connection, client = self._connection, self._client
        self._connection = self._client = None
        with contextlib.suppress(OSError):
            if client and b"\0connect\0" in Path(f"/proc/{client}/cmdline").read_bytes():
                os.kill(client, signal.SIGKILL)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _give_up(self, host: str) -> None:
        if self._connection is None and self._host == host:
            self._host = ""
            self._mux.begin()

    async def _converse(self, connection: socket.socket, number: int, decoder: Decoder, frames: Any) -> None:
        loop = asyncio.get_running_loop()
        writing = asyncio.ensure_future(self._write(connection, number))
        try:
            while True:
                for frame in frames:
                    if frame.kind == "ping":
                        self._mux.say(Frame("pong"))
                    else:
                        self._mux.take(frame)
                data = await loop.sock_recv(connection, READ_SIZE)
                if not data or self._connection is not connection:
                    return
                frames = decoder.push(data)
        finally:
            writing.cancel()
            await asyncio.wait([writing])

    async def _write(self, connection: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await self._mux.output(number):
                await loop.sock_sendall(connection, data)
        except OSError:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # --- what the host asks for -------------------------------------------------------------------------------

    def _opened(self, stream: Stream, frame: Frame) -> None:
        self._spawn(self._serve(stream, frame))

    async def _serve(self, stream: Stream, frame: Frame) -> None:
        to = frame.text("to")
        try:
            if to == "run":
                with self._egress_for(frame):
                    await run_command(self._children, stream, frame, self._settings.agent)
            elif to == "agent":
                await self._keeper.start(stream, frame)
                self._egress_of_agent(frame)
            elif to == "resume":
                self._keeper.resume(stream, frame)
            elif to == "inputs":
                await self._keeper.inputs(stream)
            elif to == "renew":
                renew_directory(self._settings.config, self._settings.agent)
                stream.exit(code=0)
            elif to == "sweep":
                await self._keeper.end()
                await self._children.end_all_of(self._settings.agent.uid)
                stream.exit(code=0)
            else:
                stream.reset(f"there is no {to} here")
        except StartError as error:
            stream.exit(str(error).encode(), code=error.code)
        except (OSError, ValueError, KeyError, TypeError) as error:
            stream.reset(f"{type(error).__name__}: {error}")

    def _egress_for(self, frame: Frame) -> _Egress:
        return _Egress(self, frame.fields.get("egress") is True)

    def _egress_of_agent(self, frame: Frame) -> None:
        """An agent's egress lasts until the next agent: while no host takes its connections, they wait."""
        wanted = frame.fields.get("egress") is True
        if wanted and not self._agent_egress:
            self.use_egress()
        elif self._agent_egress and not wanted:
            self.leave_egress()
        self._agent_egress = wanted

    def use_egress(self) -> None:
        """Open the egress door, or count one more who wants it open."""
        self._egress_users += 1
        if self._egress is None:
            self._egress = Door(self._mux, loopback_listener(self._settings.egress_port), "egress")

    def leave_egress(self) -> None:
        """One fewer wants it open."""
        self._egress_users -= 1
        if self._egress_users == 0 and self._egress is not None:
            self._egress.close()
            self._egress = None


class _Egress:
    """Keeps the egress door open for a while."""

    def __init__(self, relay: Relay, wanted: bool) -> None:
        self._relay = relay
        self._wanted = wanted

    def __enter__(self) -> None:
        if self._wanted:
            self._relay.use_egress()

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            self._relay.leave_egress()


def listen(settings: Settings) -> socket.socket | None:
    """The relay's listening socket; None when another relay answers there already.

    Raises:
        OSError: it cannot be made.
    """
    settings.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.socket.parent.chmod(0o700)
    settings.gateway.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.directory.chmod(0o700)
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.connect(str(settings.socket))
    except OSError:
        return unix_listener(settings.socket, 0o600)
    finally:
        probe.close()
    return None


def serve(settings: Settings, listener: socket.socket) -> None:
    """Run the relay until it is killed."""

    async def main() -> None:
        await Relay(settings).serve(listener)

    asyncio.run(main())


def settings_of(argument: str) -> Settings:
    """The settings on the command line.

    Raises:
        ValueError, KeyError: they are malformed.
    """
    return Settings(json.loads(argument))
