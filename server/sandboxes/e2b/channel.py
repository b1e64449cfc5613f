"""The host's end of the conversation with one relay: one wire at a time, made again whenever it breaks.

Streams live on over such breaks. They are over when the relay was started anew, when another host took the sandbox, or
when the sandbox is gone.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio
import structlog
from anyio.abc import TaskGroup

from server.errors import ErrorCode, RookeryError
from server.sandboxes.e2b.relay.doors import carry
from server.sandboxes.e2b.relay.frames import Decoder, Frame, ProtocolError, encode
from server.sandboxes.e2b.relay.mux import Mux, Stream
from server.sandboxes.e2b.relay.server import VERSION
from server.sandboxes.e2b.wire import Wire

log = structlog.get_logger(__name__)

PING_S: Final = 15.0
"""How often the relay is asked for a sign of life when it says nothing."""

SILENCE_S: Final = 45.0
"""A wire that was silent for so long is dead, whatever the operating system believes."""

HELLO_S: Final = 20.0

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 5.0

GIVE_UP_S: Final = 600.0
"""How long a broken wire is tried again before the sandbox is called lost."""

Connect = Callable[[], Awaitable[Wire]]
Destination = Callable[[], Awaitable[socket.socket | None]]
"""Gives a connected socket for a connection that something in the sandbox made; None refuses it."""


class Channel:
    """One host's conversation with one relay. Run it in a task group that outlives who uses it.

    Args:
        connect: makes a wire; ``sandbox_lost`` means that there never will be one again.
        doors: where connections from inside are carried to, by the name of their door.
    """

    def __init__(self, connect: Connect, doors: Mapping[str, Destination]) -> None:
        self.machine = ""
        """The sandbox's architecture, as ``uname -m`` says it; known once connected."""
        self.build = ""
        """Which relay runs there."""
        self.failure: RookeryError | None = None
        """Why it is over for good."""
        self._connect = connect
        self._doors = doors
        self._host = secrets.token_hex(16)
        self._mux = Mux(2, self._opened, text=False)
        self._met = False
        self._decided = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._heard = 0.0

    async def run(self) -> None:
        """Converse until cancelled, or until it is over for good. Never raises."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                await self._keep_connected()
                tasks.cancel_scope.cancel()
        finally:
            self._close(RookeryError(ErrorCode.SANDBOX_LOST, "The connection to the sandbox was closed."))

    @property
    def active(self) -> float:
        """When anything passed on a stream, on the event loop's clock."""
        return self._mux.active

    async def ready(self) -> None:
        """Wait until there is a wire.

        Raises:
            RookeryError: there will be none: ``sandbox_lost``, ``sandbox_unavailable``.
        """
        while self.failure is None and not self._mux.connected.is_set():
            decided = self._decided
            await decided.wait()
        if self.failure is not None:
            raise self.failure

    async def open(self, to: str, request: Mapping[str, Any] | None = None, **fields: Any) -> Stream:
        """A stream to what the relay knows by a name.

        Raises:
            RookeryError: as :meth:`ready`.
        """
        await self.ready()
        payload = b"" if request is None else json.dumps(request).encode("utf-8", "surrogatepass")
        return self._mux.open(to, payload, **fields)

    # --- the wire ---------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        delay, broken_since = FIRST_DELAY_S, anyio.current_time()
        while True:
            try:
                wire = await self._connect()
                try:
                    if await self._converse(wire):
                        delay, broken_since = FIRST_DELAY_S, anyio.current_time()
                finally:
                    self._mux.detach()
                    self._renew_decision()
                    with anyio.CancelScope(shield=True):
                        await wire.aclose()
            except RookeryError as error:
                last = error.code is ErrorCode.SANDBOX_LOST or not self._met
                if last or anyio.current_time() - broken_since > GIVE_UP_S:
                    self._close(error)
                    return
                log.info("sandbox_wire_not_made", error=str(error))
            except (OSError, ProtocolError) as error:
                log.info("sandbox_wire_broken", error=str(error))
                if anyio.current_time() - broken_since > GIVE_UP_S:
                    self._close(RookeryError(ErrorCode.SANDBOX_LOST, "The sandbox cannot be reached any more."))
                    return
            await anyio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY_S)

    def _renew_decision(self) -> None:
        if self._decided.is_set():
            self._decided = anyio.Event()

    def _close(self, error: RookeryError) -> None:
        if self.failure is None:
            self.failure = error
        self._mux.begin()
        self._decided.set()

    async def _converse(self, wire: Wire) -> bool:
        """Talk over one wire until it is over; whether the relay said hello.

        Raises:
            OSError, ProtocolError: it broke.
            RookeryError: ``sandbox_lost``: the sandbox has another host; ``sandbox_unavailable``: another protocol.
        """
        hello = {"host": self._host, "received": self._mux.link.received, "version": VERSION}
        await wire.send(encode(Frame("hello", hello), text=False))
        decoder, frames = Decoder(), list[Frame]()
        with anyio.move_on_after(HELLO_S):
            while not frames:
                data = await wire.receive()
                if not data:
                    return False
                frames = decoder.push(data)
        if not frames:
            raise ProtocolError("the relay does not answer")
        number = self._welcome(frames.pop(0))
        broken: ProtocolError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write, wire, number)
            tasks.start_soon(self._watch, wire)
            try:
                await self._read(wire, decoder, frames)
            except ProtocolError as error:
                # Raised in here it would come out as a group, and end more than this wire.
                broken = error
            tasks.cancel_scope.cancel()
        if broken is not None:
            raise broken
        return True

    async def _read(self, wire: Wire, decoder: Decoder, frames: list[Frame]) -> None:
        """Take frames until the wire is over.

        Raises:
            ProtocolError: something came that cannot be one.
        """
        while True:
            self._heard = anyio.current_time()
            try:
                for frame in frames:
                    if frame.kind != "pong":
                        self._mux.take(frame)
            except (ValueError, KeyError, TypeError) as error:
                raise ProtocolError(f"a frame makes no sense: {error}") from error
            data = await wire.receive()
            if not data:
                return
            frames = decoder.push(data)

    def _welcome(self, hello: Frame) -> int:
        if hello.kind != "hello":
            raise ProtocolError("the relay does not say hello")
        if hello.fields.get("refused") is True:
            raise RookeryError(ErrorCode.SANDBOX_LOST, "Another server took this sandbox over.")
        if hello.fields.get("version") != VERSION:
            raise RookeryError(
                ErrorCode.SANDBOX_LOST, "The sandbox runs another version of the relay than this server speaks with."
            )
        self.machine, self.build = hello.text("machine"), hello.text("build")
        same = hello.fields.get("same") is True
        if not same and self._met:
            log.warning("sandbox_relay_started_anew")
            self._mux.begin()
        number = self._mux.attach(hello.number("received") if same else 0)
        self._met = True
        self._decided.set()
        return number

    async def _write(self, wire: Wire, number: int) -> None:
        try:
            while data := await self._mux.output(number):
                await wire.send(data)
        except (OSError, RookeryError) as error:
            log.info("sandbox_wire_broken", error=str(error))
            await wire.aclose()

    async def _watch(self, wire: Wire) -> None:
        while True:
            await anyio.sleep(PING_S)
            silence = anyio.current_time() - self._heard
            if silence > SILENCE_S:
                log.warning("sandbox_wire_silent", seconds=round(silence))
                await wire.aclose()
                return
            if silence >= PING_S:
                self._mux.say(Frame("ping"))

    # --- connections from inside ------------------------------------------------------------------------------

    def _opened(self, stream: Stream, frame: Frame) -> None:
        destination = self._doors.get(frame.text("to"))
        if destination is None or self._tasks is None:
            stream.reset("nothing answers there")
            return
        self._tasks.start_soon(self._carry, stream, destination)

    async def _carry(self, stream: Stream, destination: Destination) -> None:
        try:
            connection = await destination()
        except OSError as error:
            log.info("sandbox_connection_refused", error=str(error))
            connection = None
        if connection is None:
            stream.reset("nothing answers there")
            return
        with connection:
            await carry(connection, stream)


async def unix_destination(path: str) -> socket.socket:
    """A connection to a Unix socket of this host.

    Raises:
        OSError: nothing listens there.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        # A connection to a Unix socket is made at once, or not at all.
        connection.connect(path)
        connection.setblocking(False)
    except OSError:
        connection.close()
        raise
    return connection
