"""What the gateway adds to a model request: each figure against the same upstream asked directly, in one run.

Upstream, gateway and client are processes of their own, on Unix sockets. The gateway is as in a server: real store
(SQLite), budgets and ledger on. Targets: time to first byte at most 3 ms more (median), a stream of 2,000 events at
most 1.15 times as long, 200 concurrent streams without an error, memory flat over 1 GB of streamed body.

Run with ``python -m benchmarks.gateway``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2

from policies import load_policy

MODEL: Final = "claude-sonnet-4-5"
TOKEN_FILE: Final = "token"
CONVERSATION_BYTES: Final = 50_000
"""Size of a request, as the first one of a CLI with its tools is."""

TARGETS: Final = {"ttfb_added_ms": 3.0, "stream_ratio": 1.15, "rss_growth_mb": 20.0}


def event(kind: str, **fields: Any) -> bytes:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


OPENING: Final = event(
    "message_start",
    message={"id": "msg_1", "role": "assistant", "model": MODEL, "usage": {"input_tokens": 10, "output_tokens": 1}},
)
CLOSING: Final = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 50}) + event(
    "message_stop"
)


async def serve_upstream(socket: Path) -> None:
    """An upstream that does as little as possible beside streaming: what is measured is the gateway."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line
                )
                wanted = json.loads((json.loads(await reader.readexactly(length)))["metadata"]["user_id"])
                await answer(writer, **wanted)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(writer: asyncio.StreamWriter, events: int, size: int, pace_s: float) -> None:
        delta = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * size})
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for part in (OPENING, *([delta] * events), CLOSING):
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
            if pace_s:
                await asyncio.sleep(pace_s)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    server = await asyncio.start_unix_server(connected, str(socket), limit=1 << 26, backlog=1024)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


async def serve_gateway(directory: Path) -> None:
    """A gateway with a real store behind it."""
    from server.budgets import Caps
    from server.clock import SYSTEM_CLOCK
    from server.gateway import Gateway, PriceBook, Upstream
    from server.models import NANO_USD, SessionRecord, SessionState, TurnRecord
    from server.store import open_store

    now = SYSTEM_CLOCK.now()
    async with open_store(f"sqlite:///{directory / 'home' / 'bench.db'}") as store:
        session = SessionRecord(
            id="bench",
            principal="local",
            root_id="bench",
            state=SessionState.STARTING,
            sandbox_kind="none",
            budget_nano_usd=100_000 * NANO_USD,
            created_at=now,
            updated_at=now,
        )
        await store.create_session(session, TurnRecord(session_id="bench", number=1, prompt="x", started_at=now))
        upstream = Upstream("http://upstream", socket=directory / "upstream.sock", trust_env=False)
        gateway = Gateway(upstream, store, PriceBook(), SYSTEM_CLOCK, budgets=store, caps=Caps(), owner="bench")
        tokens, policy = [], load_policy("workspace")
        # A session has at most 32 requests under way: as many grants as the concurrent part needs sessions.
        for _ in range(16):
            grant = gateway.open_grant()
            grant.bind(session_id="bench", root_id="bench", principal="local")
            grant.terms = lambda: policy
            tokens.append(grant.token)
        (directory / TOKEN_FILE).write_text("\n".join(tokens))
        async with anyio.create_task_group() as group:
            await group.start(_serve, gateway, directory / "gateway.sock")
            print("ready", flush=True)


async def _serve(gateway: Any, socket: Path, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    await gateway.serve(socket, task_status=task_status)


@asynccontextmanager
async def process(role: str, directory: Path) -> AsyncIterator[int]:
    """A process of this program in a role; its pid."""
    command = [sys.executable, "-m", "benchmarks.gateway", "--role", role, "--directory", str(directory)]
    running = await anyio.open_process(command, stderr=None)
    try:
        assert running.stdout is not None
        with anyio.fail_after(120):
            await running.stdout.receive()
        yield running.pid
    finally:
        running.kill()
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            await running.wait()


@dataclass
class Way:
    """One way to the model."""

    client: httpx2.AsyncClient
    tokens: list[str]

    async def stream(self, events: int, size: int = 20, pace_s: float = 0.0, lane: int = 0) -> tuple[float, float, int]:
        """Seconds to the first byte and in all, and the bytes received of one stream."""
        wanted = json.dumps({"events": events, "size": size, "pace_s": pace_s})
        body = {
            "model": MODEL,
            "max_tokens": 1000,
            "stream": True,
            "metadata": {"user_id": wanted},
            "messages": [{"role": "user", "content": "x" * CONVERSATION_BYTES}],
        }
        headers = {"x-api-key": self.tokens[lane % len(self.tokens)]}
        first = received = 0
        began = time.perf_counter_ns()
        async with self.client.stream("POST", "/v1/messages", json=body, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            async for chunk in response.aiter_raw():
                first = first or time.perf_counter_ns()
                received += len(chunk)
        return (first - began) / 1e9, (time.perf_counter_ns() - began) / 1e9, received


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def first_byte(direct: Way, through: Way, rounds: int) -> float:
    """Median of what the gateway adds to the time to the first byte, in milliseconds; asked in turn."""
    times: dict[str, list[float]] = {"direct": [], "through": []}
    for _ in range(rounds):
        times["direct"].append((await direct.stream(1))[0])
        times["through"].append((await through.stream(1))[0])
    medians = {name: statistics.median(values[rounds // 10 :]) * 1000 for name, values in times.items()}
    added = medians["through"] - medians["direct"]
    print(
        f"time to first byte   direct {medians['direct']:7.2f} ms   gateway {medians['through']:7.2f} ms   +{added:.2f}"
    )
    return added


async def whole_stream(direct: Way, through: Way, rounds: int, pace_s: float, label: str) -> float:
    """Ratio of the medians of whole streams of 2,000 events."""
    times: dict[str, list[float]] = {"direct": [], "through": []}
    for _ in range(rounds):
        times["direct"].append((await direct.stream(2000, pace_s=pace_s))[1])
        times["through"].append((await through.stream(2000, pace_s=pace_s))[1])
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["through"] / medians["direct"]
    print(f"{label} direct {medians['direct']:7.3f} s    gateway {medians['through']:7.3f} s    x{ratio:.2f}")
    return ratio


async def concurrent(direct: Way, through: Way, streams: int) -> int:
    """Errors among concurrent streams; prints how long all took either way."""
    took: dict[str, float] = {}
    errors = 0
    for name, way in (("direct", direct), ("through", through)):

        async def one(way: Way, lane: int) -> None:
            nonlocal errors
            try:
                _, _, received = await way.stream(200, pace_s=0.005, lane=lane)
                errors += received < 200 * 20
            except (httpx2.HTTPError, AssertionError):
                errors += 1

        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for number in range(streams):
                group.start_soon(one, way, number)
        took[name] = time.perf_counter() - began
    print(
        f"{streams} streams at once   direct {took['direct']:7.2f} s    gateway {took['through']:7.2f} s    "
        f"x{took['through'] / took['direct']:.2f}   {errors} errors"
    )
    return errors


async def memory(direct: Way, through: Way, pid: int, megabytes: int) -> float:
    """How much the gateway's resident memory grows over one large stream, in MiB; prints the throughput."""
    size = 16_384
    events = megabytes * 2**20 // size
    _, direct_s, _ = await direct.stream(events // 10, size=size)
    before = highest = resident_mb(pid)
    done = anyio.Event()

    async def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, resident_mb(pid))
            with anyio.move_on_after(0.1):
                await done.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        _, through_s, received = await through.stream(events, size=size)
        done.set()
    grown = highest - before
    print(
        f"{received / 2**20:.0f} MB body        direct {megabytes / 10 / direct_s:7.0f} MB/s gateway "
        f"{received / 2**20 / through_s:7.0f} MB/s memory {before:.0f} MB, at most {highest:.0f} MB (+{grown:.1f})"
    )
    return grown


async def measure(arguments: argparse.Namespace) -> bool:
    """Run everything; whether all targets are met."""
    with tempfile.TemporaryDirectory(prefix="rookery-bench-") as name:
        directory = Path(name)
        async with process("upstream", directory), process("gateway", directory) as pid:
            tokens = (directory / TOKEN_FILE).read_text().split()
            async with (
                httpx2.AsyncClient(**_options(directory / "upstream.sock")) as one,
                httpx2.AsyncClient(**_options(directory / "gateway.sock")) as other,
            ):
                direct, through = Way(one, tokens), Way(other, tokens)
                added = await first_byte(direct, through, arguments.rounds)
                await whole_stream(direct, through, 7, 0.0, "2,000 events at once")
                ratio = await whole_stream(direct, through, 3, 0.001, "2,000 events, 1 ms  ")
                errors = await concurrent(direct, through, 200)
                grown = await memory(direct, through, pid, arguments.megabytes)
    met = {
        "time to first byte": added <= TARGETS["ttfb_added_ms"],
        "stream": ratio <= TARGETS["stream_ratio"],
        "concurrent streams": errors == 0,
        "memory": grown <= TARGETS["rss_growth_mb"],
    }
    print("targets: " + ", ".join(f"{name} {'met' if good else 'MISSED'}" for name, good in met.items()))
    return all(met.values())


def _options(socket: Path) -> dict[str, Any]:
    limits = httpx2.Limits(max_connections=None)
    transport = httpx2.AsyncHTTPTransport(uds=str(socket), limits=limits)
    return {"transport": transport, "base_url": "http://model", "timeout": 120.0}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="requests for the time to the first byte")
    parser.add_argument("--megabytes", type=int, default=1024, help="size of the large stream")
    parser.add_argument("--role", choices=["upstream", "gateway"], help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "upstream":
        anyio.run(serve_upstream, arguments.directory / "upstream.sock")
    elif arguments.role == "gateway":
        anyio.run(serve_gateway, arguments.directory)
    else:
        sys.exit(0 if anyio.run(measure, arguments) else 1)


if __name__ == "__main__":
    main()
