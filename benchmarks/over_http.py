"""What a call over HTTP costs, alone and beside hundreds of idle streams, and 64 turns at once without an error.

`get_session` is called in turn with a tool that does nothing of an empty MCP server, both over HTTP by the SDK's
client, so that whatever else the machine does falls on both. Target: a median of at most 1.5 times, also with 300
clients that hold an event stream open. Then 64 turns are asked for at once; each is followed by its event stream,
which must have neither a gap nor an error. With fewer places than turns (--places) the others wait in the queue.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2

IDLE_STREAMS: Final = 300
TURNS: Final = 64
PATIENCE_S: Final = 600

EMPTY: Final = """
import sys
import uvicorn
from mcp.server import MCPServer
server = MCPServer("empty")
@server.tool()
def nothing() -> str:
    return "ok"
uvicorn.run(server.streamable_http_app(), port=int(sys.argv[1]), log_level="error")
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def process(command: list[str], environment: dict[str, str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server, once it accepts connections."""
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield server
        finally:
            server.terminate()
            server.wait(60)


async def medians(servers: dict[str, tuple[str, str, dict[str, Any]]], era: Any, calls: int) -> dict[str, float]:
    """Median seconds of a call of each server's tool, called in turn."""
    from contextlib import AsyncExitStack

    from mcp import Client

    times: dict[str, list[float]] = {name: [] for name in servers}
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(Client(url, mode=era)) for name, (url, _, _) in servers.items()
        }
        for number in range(calls + 5):
            for name, (_, tool, arguments) in servers.items():
                started = time.perf_counter()
                result = await clients[name].call_tool(tool, arguments)
                elapsed = time.perf_counter() - started
                assert not result.is_error
                if number >= 5:
                    times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, found: dict[str, float]) -> None:
    empty, rookery = found["empty"], found["get_session"]
    ratio = rookery / empty
    print(f"{title:<34}{empty * 1000:8.2f} ms{rookery * 1000:8.2f} ms  ratio {ratio:5.2f}   (target: at most 1.50)")


@contextmanager
def idle_streams(root: str, session_id: str, number: int) -> Iterator[None]:
    """Clients that have read a session's log so far and hold the stream open."""
    host, _, port = root.removeprefix("http://").partition(":")
    streams = []
    for _ in range(number):
        stream = socket.create_connection((host, int(port)), 30)
        stream.sendall(f"GET /v1/sessions/{session_id}/events HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        streams.append(stream)
    for stream in streams:
        head = b""
        while b"id: 1\n" not in head:
            head += stream.recv(65_536)
    try:
        yield
    finally:
        for stream in streams:
            stream.close()


async def one_turn(root: str, client: Any, prompt: str) -> float:
    """Ask for a turn and follow its log to the end of the turn; how long it took."""
    started = time.perf_counter()
    answer = await client.call_tool("spawn_agent", {"prompt": prompt, "wait_s": 0})
    assert not answer.is_error, answer.content
    session_id = answer.structured_content["session_id"]
    seen = 0
    async with (
        httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http,
        http.stream("GET", f"{root}/v1/sessions/{session_id}/events") as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                assert int(line[4:]) == seen + 1, f"a gap behind {seen}"
                seen += 1
            if line.startswith("data: ") and '"kind":"turn_ended"' in line:
                break
    outcome = (await client.call_tool("get_session", {"session_id": session_id})).structured_content["outcome"]
    assert outcome["stop_reason"] == "end_turn", outcome
    return time.perf_counter() - started


async def turns_at_once(root: str, prompt: str, number: int) -> list[float]:
    from mcp import Client

    taken: list[float] = []

    async def one(client: Any) -> None:
        taken.append(await one_turn(root, client, prompt))

    async with Client(f"{root}/mcp", mode="auto") as client, anyio.create_task_group() as tasks:
        for _ in range(number):
            tasks.start_soon(one, client)
    return taken


def peak_mib(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=60, help="calls of each server")
    parser.add_argument("--turns", type=int, default=TURNS, help="turns asked for at once; 0: none")
    parser.add_argument("--places", type=int, default=TURNS, help="turns at work at once, 220 MB each")
    chosen = parser.parse_args()
    from server.gateway.scripted import prompt_with

    with tempfile.TemporaryDirectory() as home:
        empty_port, port = free_port(), free_port()
        environment = {
            **os.environ,
            "ROOKERY_HOME": home,
            "ROOKERY_UPSTREAM": "scripted",
            "ROOKERY_WARM": "0",
            "ROOKERY_LOG_LEVEL": "error",
            "ROOKERY_MAX_SESSIONS": str(chosen.places),
            "ROOKERY_QUEUE_S": str(PATIENCE_S),
            "ROOKERY_IDLE_S": "1",
        }
        rookery = [sys.executable, "-m", "rookery", "serve", "--http", f"127.0.0.1:{port}"]
        empty = [sys.executable, "-c", EMPTY, str(empty_port)]
        root = f"http://127.0.0.1:{port}"
        with process(empty, environment, empty_port), process(rookery, environment, port) as server:

            async def spawn() -> str:
                from mcp import Client

                async with Client(f"{root}/mcp") as client:
                    answer = await client.call_tool("spawn_agent", {"prompt": prompt_with([{"text": "ready"}])})
                assert answer.structured_content is not None
                return str(answer.structured_content["session_id"])

            session_id = anyio.run(spawn)
            time.sleep(3)  # its process has gone to sleep
            servers: dict[str, tuple[str, str, dict[str, Any]]] = {
                "empty": (f"http://127.0.0.1:{empty_port}/mcp", "nothing", {}),
                "get_session": (f"{root}/mcp", "get_session", {"session_id": session_id}),
            }
            print(f"{'median of a call':<34}{'empty':>11}{'get_session':>11}")
            for era, name in (("auto", "2026-07-28"), ("legacy", "2025-11-25")):
                report(name, anyio.run(medians, servers, era, chosen.calls))
            with idle_streams(root, session_id, IDLE_STREAMS):
                report(f"2026-07-28, {IDLE_STREAMS} idle streams", anyio.run(medians, servers, "auto", chosen.calls))
            if chosen.turns:
                prompt = prompt_with([{"tool": "Bash", "input": {"command": "sleep 2"}}, {"text": "done"}])
                started = time.perf_counter()
                taken = anyio.run(turns_at_once, root, prompt, chosen.turns)
                whole = time.perf_counter() - started
                print(
                    f"{len(taken)} turns at once, {chosen.places} places: no error, no gap; {whole:.1f} s in all, "
                    f"median {statistics.median(taken):.1f} s"
                )
            print(f"most memory of the server         {peak_mib(server.pid):8} MiB")


if __name__ == "__main__":
    main()
