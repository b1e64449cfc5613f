"""The agent's process, which outlives its host: what it says is kept until a host has it for good, what it is told is
taken once, and how it ended is remembered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections import deque
from pathlib import Path
from typing import Any

from server.sandboxes.e2b.relay.attended import Attended
from server.sandboxes.e2b.relay.children import TERM_GRACE_S, Child, Children, Identity, request_of
from server.sandboxes.e2b.relay.commands import start_child
from server.sandboxes.e2b.relay.frames import PIECE, Frame
from server.sandboxes.e2b.relay.mux import Stream, StreamClosedError
from server.sandboxes.e2b.relay.records import Log

KEPT = 1 << 30
"""Bytes of output that are kept at most, unless the settings say otherwise.

A host settles a turn's output at the turn's end, for the next host must hear all of a turn to go on with it. So an
agent that says more than this in one turn waits, until the host ends the turn at its time.
"""

MAX_RECORD = 64 << 20
"""Largest single input."""

STDERR_KEPT = 16 * 1024
RETRY_S = 1.0


class AgentKeeper:
    """The one agent of this sandbox, or none.

    Args:
        directory: where its logs lie; out of its own reach.
        identity: who it runs as.
        kept: bytes of its output that are kept at most.
    """

    def __init__(self, children: Children, directory: Path, identity: Identity, kept: int) -> None:
        self._children = children
        self._directory = directory
        self._identity = identity
        self._kept = kept
        self._agent: KeptAgent | None = None

    async def start(self, stream: Stream, frame: Frame) -> None:
        """End the present agent and start another, whose host is the other end of ``stream``.

        The payload is that of a command, and ``keepsake``: what the next host is told, should this one be gone.

        Raises:
            StartError: it was not started.
        """
        request = request_of(json.loads(frame.payload))
        if self._agent is not None:
            agent, self._agent = self._agent, None
            await agent.dispose()
        child = start_child(self._children, request, self._identity)
        self._agent = KeptAgent(self._children, child, self._directory, request.get("keepsake"), self._kept)
        self._agent.follow(stream, 0)

    def resume(self, stream: Stream, frame: Frame) -> None:
        """Let another host take the agent over, from a position of its output on; -1: from the first that is kept."""
        if self._agent is None:
            stream.exit(code=None, none=True)
            return
        self._agent.follow(stream, frame.number("position"))

    async def inputs(self, stream: Stream) -> None:
        """Send what the agent was told and no host has done with."""
        try:
            if self._agent is not None:
                await self._agent.send_inputs(stream)
        except StreamClosedError:
            return
        stream.exit(code=0)

    async def end(self) -> None:
        """End the agent and forget it."""
        if self._agent is not None:
            agent, self._agent = self._agent, None
            await agent.dispose()


class KeptAgent:
    """A started agent. Made by :class:`AgentKeeper` only."""

    def __init__(self, children: Children, child: Child, directory: Path, keepsake: Any, limit: int) -> None:
        self._attended = Attended(children, child, stderr_kept=STDERR_KEPT)
        self._child = child
        self._keepsake = keepsake
        self._limit = limit
        self._output = Log(directory / "output")
        self._input = Log(directory / "input")
        self._input_ends: deque[tuple[int, int]] = deque()
        """Number and last position of each input that is kept."""
        self._inputs = 0
        self._settled_inputs = 0
        self._input_closed = False
        self._over = False
        self._grown = asyncio.Event()
        self._trimmed = asyncio.Event()
        self._stream: Stream | None = None
        self._serving: list[asyncio.Future[None]] = []
        self._writing = asyncio.Lock()
        self._life = asyncio.ensure_future(self._live())

    async def dispose(self) -> None:
        """End it at once, and remove its logs."""
        self._attended.terminate(0)
        await self._child.ended.wait()
        if self._stream is not None:
            self._stream.reset("another agent was started")
        self._leave()
        self._life.cancel()
        await asyncio.wait([self._life])
        self._output.close()
        self._input.close()

    # --- its output -------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        reading = asyncio.ensure_future(self._record())
        try:
            await self._attended.ended()
            await asyncio.wait([reading])
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            await self._attended.close()
        self._over = True
        self._grown.set()

    async def _record(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._output.size >= self._limit:
                self._trimmed.clear()
                await self._trimmed.wait()
            try:
                data = await loop.sock_recv(self._child.stdout, PIECE)
            except OSError:
                return
            if not data:
                return
            # The disk sets no event when it has room again.
            while not self._kept(data):  # noqa: ASYNC110
                await asyncio.sleep(RETRY_S)
            self._grown.set()

    def _kept(self, data: bytes) -> bool:
        """Whether the disk took it; the agent waits while it does not."""
        try:
            self._output.append(data)
        except OSError:
            return False
        return True

    # --- its host ---------------------------------------------------------------------------------------------

    def follow(self, stream: Stream, position: int) -> None:
        """Make the other end of ``stream`` its host. The last one is told to leave."""
        if self._stream is not None:
            self._stream.reset("another host took the agent over")
        self._leave()
        position = self._output.start if position < 0 else position
        if not self._output.start <= position <= self._output.end:
            stream.reset(f"the output from {self._output.start} to {self._output.end} is kept, not {position}")
            return
        self._stream = stream
        stream.on_signal = self._signalled
        state = {
            "pid": self._child.pid,
            "position": position,
            "end": self._output.end,
            "inputs": self._inputs,
            "running": self._child.status is None,
            "keepsake": self._keepsake,
        }
        stream.note("state", json.dumps(state).encode())
        self._serving = [
            asyncio.ensure_future(self._send(stream, position)),
            asyncio.ensure_future(self._obey(stream)),
        ]

    def _leave(self) -> None:
        self._stream = None
        for task in self._serving:
            task.cancel()
        self._serving = []

    def _signalled(self, frame: Frame) -> None:
        what = frame.text("what")
        if what in ("terminate", "kill"):
            self._attended.terminate(TERM_GRACE_S if what == "terminate" else 0)
        elif what == "trim":
            self._trim(frame.number("output"), frame.number("inputs"))

    async def _send(self, stream: Stream, position: int) -> None:
        try:
            while True:
                await stream.room()
                data = self._output.read(position, PIECE)
                if data:
                    await stream.write(data)
                    position += len(data)
                elif self._over:
                    stream.exit(self._attended.stderr, code=self._child.status)
                    return
                else:
                    self._grown.clear()
                    await self._grown.wait()
        except StreamClosedError:
            return
        except (OSError, ValueError) as error:
            stream.reset(f"the output cannot be read: {error}")

    async def _obey(self, stream: Stream) -> None:
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                item = await stream.receive()
            except StreamClosedError:
                return
            if item is None:
                return
            if isinstance(item, bytes):
                parts.append(item)
                size += len(item)
                if size > MAX_RECORD:
                    stream.reset(f"the input is larger than {MAX_RECORD} bytes")
                    return
            elif item.text("what") == "input":
                # An input counts only when it is whole, and only once.
                if item.number("number") == self._inputs + 1:
                    # From here on it is taken, even if this host leaves while the agent does not read.
                    await asyncio.shield(asyncio.ensure_future(self._accept(b"".join(parts), stream)))
                parts, size = [], 0
            elif item.text("what") == "eof":
                async with self._writing:
                    self._close_input()

    async def _accept(self, data: bytes, stream: Stream) -> None:
        self._inputs += 1
        # Without a record the next host may tell it again; that is better than not telling it now.
        with contextlib.suppress(OSError):
            self._input.append(data)
        self._input_ends.append((self._inputs, self._input.end))
        self._trim_inputs()
        async with self._writing:
            try:
                if not self._input_closed:
                    await asyncio.get_running_loop().sock_sendall(self._child.stdin, data)
            except OSError:
                self._input_closed = True
            if self._input_closed:
                stream.signal("deaf")

    def _close_input(self) -> None:
        self._input_closed = True
        with contextlib.suppress(OSError):
            self._child.stdin.shutdown(socket.SHUT_WR)

    def _trim(self, output: int, inputs: int) -> None:
        self._output.trim(output)
        self._settled_inputs = max(self._settled_inputs, inputs)
        self._trim_inputs()
        self._trimmed.set()

    def _trim_inputs(self) -> None:
        # One that is settled may still be on its way here: its host knew that it will be taken.
        while self._input_ends and self._input_ends[0][0] <= self._settled_inputs:
            self._input.trim(self._input_ends.popleft()[1])

    async def send_inputs(self, stream: Stream) -> None:
        """Send the inputs that are kept, one after the other."""
        position = self._input.start
        while position < self._input.end:
            data = self._input.read(position, PIECE)
            await stream.write(data)
            position += len(data)


def renew_directory(path: Path, identity: Identity) -> dict[str, Any]:
    """Make a directory of the agent's anew, empty. What was there is removed without following a link.

    Raises:
        OSError: it cannot be made.
    """
    import shutil

    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
    return {}
