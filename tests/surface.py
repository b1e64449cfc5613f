"""Helpers for tests of the MCP surface: real clients of the SDK in both protocol eras, and the server as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

from mcp import Client
from mcp_types import CallToolResult, TextContent

from server.callers import LOCAL_PRINCIPAL, Caller
from tools.backend import Registry
from tools.server import build_server

Era = Literal["auto", "legacy"]
"""Modes of the SDK's client: 2026-07-28, and the handshake of 2025-11-25."""

ERAS: Final[tuple[Era, ...]] = ("auto", "legacy")

INITIALIZE: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}

EXIT_S: Final = 12.0
"""Longest that the server may take to leave."""


class ReadyBackend:
    """A backend whose registry is there already."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def registry(self) -> Registry:
        return self._registry


@asynccontextmanager
async def connected(
    registry: Registry, era: Era = "auto", *, principal: str = LOCAL_PRINCIPAL, max_wait_s: float = 50.0
) -> AsyncIterator[Client]:
    """A client of a server in this process."""
    server = build_server(ReadyBackend(registry), caller=Caller(principal), max_wait_s=max_wait_s)
    async with Client(server, mode=era) as client:
        yield client


@dataclass
class ProgressLog:
    """What a caller was told while it waited."""

    numbers: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        self.numbers.append(progress)
        self.texts.append(message or "")


def text_of(result: CallToolResult) -> str:
    """The text for people."""
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


def answer_of(result: CallToolResult) -> dict[str, Any]:
    """The structured answer of a call that did not fail."""
    assert not result.is_error, text_of(result)
    return cast(dict[str, Any], result.structured_content)


def error_of(result: CallToolResult) -> dict[str, Any]:
    """The structured error of a call that failed; its form is checked."""
    assert result.is_error
    error = cast(dict[str, Any], result.structured_content)
    assert set(error) == {"code", "message", "retryable"}
    assert text_of(result) == f"{error['code']}: {error['message']}"
    return error


def environment(home: Path, **more: str) -> dict[str, str]:
    """For a server process: nothing of the one who runs the tests but what programs need."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    return {**kept, "ROOKERY_HOME": str(home), "ROOKERY_UPSTREAM": "scripted", "ROOKERY_WARM": "0", **more}


@dataclass
class Wire:
    """The server as a process, spoken to in raw lines."""

    process: subprocess.Popen[bytes]

    @property
    def _stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def send_line(self, line: bytes) -> None:
        self._stdin.write(line + b"\n")
        self._stdin.flush()

    def send(self, method: str, params: Mapping[str, Any] | None = None, request_id: int | None = None) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": dict(params or {})}
        if request_id is not None:
            message["id"] = request_id
        self.send_line(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """The next line, which must be a message; anything else on stdout fails here."""
        assert self.process.stdout is not None
        return cast(dict[str, Any], json.loads(self.process.stdout.readline()))

    def ask(self, request_id: int, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.send(method, params, request_id)
        while (message := self.receive()).get("id") != request_id:
            pass
        return message

    def initialize(self) -> None:
        assert "result" in self.ask(0, "initialize", INITIALIZE)
        self.send("notifications/initialized")

    def call(self, request_id: int, tool: str, **arguments: Any) -> dict[str, Any]:
        """A tool's structured answer, be it a result or an error."""
        message = self.ask(request_id, "tools/call", {"name": tool, "arguments": arguments})
        return cast(dict[str, Any], message["result"]["structuredContent"])

    def close_input(self) -> None:
        self._stdin.close()

    def wait(self) -> int:
        return self.process.wait(timeout=EXIT_S)

    def memory_peak_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    def descendants(self) -> set[int]:
        """Process ids of all that the server has started and that live."""
        children: dict[int, set[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), set()).add(int(stat.parent.name))
        found: set[int] = set()
        waiting = [self.process.pid]
        while waiting:
            new = children.get(waiting.pop(), set()) - found
            found |= new
            waiting.extend(new)
        return found


def alive(pids: set[int]) -> set[int]:
    """Which of these still run; zombies do not."""
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found


@contextmanager
def serving(home: Path, *, command: Sequence[str] | None = None, **variables: str) -> Iterator[Wire]:
    """`rookery serve` as a process; killed at the end if a test left it running."""
    with subprocess.Popen(
        command or [sys.executable, "-m", "rookery", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(home, **variables),
    ) as process:
        try:
            yield Wire(process)
        finally:
            if process.poll() is None:
                process.kill()
