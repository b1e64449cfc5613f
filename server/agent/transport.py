"""The SDK's transport, carried into a sandbox.

The SDK marks :class:`claude_agent_sdk.Transport` as unstable, so this module is the only one that implements it.
What comes out of the sandbox is untrusted: lines are bounded, frames are checked for shape and for the session they
name, and an end of output that nobody asked for raises :class:`claude_agent_sdk.ProcessError` (without it the SDK
waits a minute in ``initialize``).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, cast

import anyio
from claude_agent_sdk import ClaudeSDKError, ProcessError, Transport

from server.agent.launch import TRANSCRIPTS
from server.agent.replay import Placed, answered_requests, initialised
from server.sandboxes.base import CONFIG_DIR, AgentProcess, LastingProcess, StillProcess

MAX_LINE_BYTES: Final = 32 << 20
"""Longest line accepted from the CLI. The Messages API takes requests of at most 32 MB, and one frame holds a part
of one."""

MAX_NOISE_LINES: Final = 1_000
"""Lines that are no JSON objects (a library's warning) are passed over, but not without end."""

MAX_POSITIONS: Final = 10_000
"""Messages whose place in the output is remembered: many more than wait to be stored."""

EOF_GRACE_S: Final = 3.0
"""How long the CLI may take to leave after the end of its input, before its process tree is ended."""


class AgentProtocolError(ClaudeSDKError):
    """The CLI's output broke the protocol: too long a line, malformed JSON, a frame of another session."""


class LineFramer:
    """Cuts a byte stream into lines, in time linear in its length, and never holds more than ``limit`` bytes."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._held = 0

    def push(self, chunk: bytes) -> list[bytes]:
        """Take a chunk; the lines that it completes, without their newlines.

        Raises:
            AgentProtocolError: a line is longer than the limit. The framer must not be used after that.
        """
        *complete, rest = chunk.split(b"\n")
        lines: list[bytes] = []
        for piece in complete:
            self._hold(piece)
            lines.append(b"".join(self._parts))
            self._parts, self._held = [], 0
        if rest:
            self._hold(rest)
        return lines

    def _hold(self, piece: bytes) -> None:
        self._held += len(piece)
        if self._held > self._limit:
            self._parts = []
            raise AgentProtocolError(f"a line of the agent's output is longer than {self._limit} bytes")
        self._parts.append(piece)


class SandboxTransport(Transport):
    """Speaks the CLI's stream-json protocol with an agent process in a sandbox.

    Args:
        start: starts the process; called once by ``connect``.
        session_id: the only session whose frames are accepted.
        stream: names the process's output for good, where it may outlive this host; empty where it does not.
        survived: the process was started by another host, which initialised it.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[AgentProcess]],
        session_id: str,
        *,
        stream: str = "",
        survived: LastingProcess | None = None,
    ) -> None:
        self._start = start
        self._stream = stream
        self._survived = survived
        self._answered = frozenset[str]() if survived is None else answered_requests(survived.told)
        self._greeting: dict[str, Any] | None = None
        self._greeted = anyio.Event()
        self._position = 0
        self._positions: OrderedDict[str, int] = OrderedDict()
        self._session_id = session_id
        self._transcripts = f"{CONFIG_DIR}/{TRANSCRIPTS}/{session_id}"
        self._process: AgentProcess | None = None
        self._write_lock = anyio.Lock(fast_acquire=True)
        self._ending = False

    @property
    def process(self) -> AgentProcess | None:
        """The agent's process once connected."""
        return self._process

    def position_of(self, message_id: str | None) -> int | None:
        """Where in the output a message ended; None where that is not known, or the output has no positions."""
        return None if message_id is None else self._positions.get(message_id)

    def settle(self, position: int) -> None:
        """Everything up to a position of the output is stored for good."""
        process = self._process
        if self._stream and process is not None:
            cast(LastingProcess, process).settle(position)

    async def connect(self) -> None:
        if self._process is None:
            if self._survived is not None:
                self._survived.admit()
            self._process = self._survived or await self._start()
            if self._stream:
                self._position = cast(LastingProcess, self._process).position

    def is_ready(self) -> bool:
        return self._process is not None and not self._ending and self._process.returncode is None

    async def write(self, data: str) -> None:
        if self._process is None:
            raise ClaudeSDKError("the agent is not connected")
        if self._survived is not None and not self._greeted.is_set():
            # It was initialised by the host that started it, with the same hooks; a second time it would refuse.
            self._greeting = initialised(data)
            self._greeted.set()
            return
        async with self._write_lock:
            try:
                await self._process.write(data.encode("utf-8", "backslashreplace"))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
                raise ProcessError("the agent no longer reads its input", self._process.returncode) from error

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        process = self._process
        if process is None:
            raise ClaudeSDKError("the agent is not connected")
        framer = LineFramer()
        noise = 0
        if self._survived is not None:
            await self._greeted.wait()
            assert self._greeting is not None
            yield self._greeting
        while chunk := await process.read():
            for line in framer.push(chunk):
                self._position += len(line) + 1
                frame = self._frame(line)
                if frame is not None:
                    if self._stream and not self._is_new(frame):
                        continue
                    yield frame
                elif line.strip():
                    noise += 1
                    if noise > MAX_NOISE_LINES:
                        raise AgentProtocolError("the agent's output is not the protocol's")
        if not self._ending:
            with anyio.move_on_after(EOF_GRACE_S):
                await process.wait()
            raise ProcessError("the agent ended unexpectedly", process.returncode, process.stderr_tail())

    def _is_new(self, frame: dict[str, Any]) -> bool:
        """Note where a frame ended; False for a question that the last host has answered."""
        match frame["type"]:
            case "control_request":
                return frame["request_id"] not in self._answered
            case "transcript_mirror":
                frame["entries"] = [
                    Placed(entry, f"{self._stream}:{self._position}:{number}")
                    for number, entry in enumerate(frame["entries"])
                ]
            case _ if isinstance(frame.get("uuid"), str):
                self._positions[frame["uuid"]] = self._position
                while len(self._positions) > MAX_POSITIONS:
                    self._positions.popitem(last=False)
        return True

    def _frame(self, line: bytes) -> dict[str, Any] | None:
        """A checked frame; None for a line that is no JSON object at all.

        Raises:
            AgentProtocolError: a JSON object that is malformed or of another session.
        """
        if not line.lstrip().startswith(b"{"):
            return None
        try:
            frame = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AgentProtocolError("the agent sent malformed JSON") from error
        if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
            raise AgentProtocolError("the agent sent a frame without a type")
        session_id = frame.get("session_id")
        if isinstance(session_id, str) and session_id not in ("", "default", self._session_id):
            raise AgentProtocolError("the agent sent a frame of another session")
        match frame["type"]:
            case "transcript_mirror":
                self._check_mirror(frame)
            case "control_request" | "control_response":
                body = frame.get("request" if frame["type"] == "control_request" else "response")
                if not isinstance(body, dict):
                    raise AgentProtocolError("the agent sent a control frame without a body")
                if frame["type"] == "control_request" and not (
                    isinstance(frame.get("request_id"), str) and isinstance(body.get("subtype"), str)
                ):
                    raise AgentProtocolError("the agent sent a control request without an id or subtype")
            case _:
                pass
        return frame

    def _check_mirror(self, frame: dict[str, Any]) -> None:
        path, entries = frame.get("filePath"), frame.get("entries")
        if not isinstance(path, str) or not isinstance(entries, list):
            raise AgentProtocolError("the agent sent a malformed transcript frame")
        own = path == f"{self._transcripts}.jsonl" or path.startswith(f"{self._transcripts}/")
        if not own or "/../" in path:
            raise AgentProtocolError("the agent sent the transcript of another session")
        if not all(isinstance(entry, dict) and isinstance(entry.get("type"), str) for entry in entries):
            raise AgentProtocolError("the agent sent malformed transcript entries")

    async def end_input(self) -> None:
        self._ending = True
        if self._process is not None:
            await self._process.close_input()

    async def close(self) -> None:
        """EOF, a grace, then TERM and KILL to the process tree, and reap: every wait bounded (``terminate``).

        One that is held still is killed as it is.
        """
        self._ending = True
        process = self._process
        if process is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                with anyio.move_on_after(0 if isinstance(process, StillProcess) and process.held else EOF_GRACE_S):
                    await process.close_input()
                    await process.wait()
            finally:
                await process.terminate()
