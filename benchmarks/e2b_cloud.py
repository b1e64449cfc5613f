"""E2B against bubblewrap, and the relay against the SDK's own command stream, side by side in one run.

The cloud is the local double of ``tests/e2b_cloud``: what is measured is what Rookery adds, not E2B's network. Numbers
of bubblewrap and of the SDK's raw stream are taken in turns with ours.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import anyio

sys.path.insert(0, str(Path(__file__).parents[1]))

from server.sandboxes.base import Limits, SandboxProvider
from server.sandboxes.bubblewrap import BubblewrapProvider
from server.sandboxes.e2b.provider import E2BProvider, open_e2b
from server.sandboxes.e2b.sandbox import E2BSandbox
from tests.e2b_cloud import users
from tests.e2b_cloud.fixture import NEEDED, running_cloud
from tests.e2b_cloud.handle import E2BCloud
from tests.e2b_providers import options_for
from tests.sandboxes import bundled_cli, gateway_socket, spec_for

ROUNDS: Final = int(os.environ.get("ROUNDS", "5"))
ECHOES: Final = int(os.environ.get("ECHOES", "300"))
MEGABYTES: Final = int(os.environ.get("MEGABYTES", "32"))
AT_ONCE: Final = int(os.environ.get("AT_ONCE", "50"))

FLOOD: Final = f"head -c {MEGABYTES << 20} /dev/zero | tr '\\\\0' x"


def shown(name: str, values: list[float]) -> float:
    """Print and give the median, in milliseconds."""
    middle = statistics.median(values) * 1000
    print(f"  {name:<44} median {middle:9.2f} ms   min {min(values) * 1000:9.2f} ms   max {max(values) * 1000:9.2f} ms")
    return middle


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def spawns(providers: dict[str, SandboxProvider], gateway: Path) -> None:
    """From nothing to the first line of an agent, in turns."""
    print(f"spawn: a new sandbox and the first line of a process in it ({ROUNDS} each, in turns)")
    times: dict[str, list[float]] = {name: [] for name in providers}
    for number in range(ROUNDS + 1):
        for name, provider in providers.items():
            began = time.perf_counter()
            sandbox = await provider.create(spec_for(gateway))
            agent = await sandbox.start_agent(["echo", "up"], {})
            assert await agent.read() == b"up\n"
            if number:
                times[name].append(time.perf_counter() - began)
            await agent.terminate()
            await sandbox.destroy()
    medians = {name: shown(name, values) for name, values in times.items()}
    first, second = medians
    print(f"  {first} : {second} = {medians[first] / medians[second]:.2f} : 1")


class RawCommand:
    """A command over the SDK alone, as it comes."""

    def __init__(self) -> None:
        self.received = 0
        self.changed = anyio.Event()
        self._pen: Any = None
        self._handle: Any = None

    async def start(self, box: Any, command: str) -> None:
        """Start it with an ordered stream to its stdin."""
        self._handle = await box.commands.run(
            command, background=True, stdin=True, timeout=0, retain_output=False, on_stdout=self._take
        )
        self._pen = box.commands.stream_input(self._handle.pid, timeout=0)

    def _take(self, text: str) -> None:
        self.received += len(text)
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, size: int) -> None:
        """Wait until so much has come since its start."""
        while self.received < size:
            await self.changed.wait()

    async def send(self, line: bytes) -> None:
        """Write to its stdin."""
        await self._pen.send(line)

    async def end(self) -> None:
        """Wait for its end."""
        await self._handle.wait()

    async def kill(self) -> None:
        """End it."""
        await self._pen.close()
        await self._handle.kill()


async def latency(sandbox: E2BSandbox, box: Any) -> None:
    """There and back of one line, in turns."""
    print(f"latency: one line to `cat` and back ({ECHOES} each, in turns)")
    raw = RawCommand()
    await raw.start(box, "cat")
    agent = await sandbox.start_agent(["cat"], {})
    line = b"x" * 200 + b"\n"
    times: dict[str, list[float]] = {"SDK": [], "relay": []}
    for number in range(ECHOES):

        async def over_sdk(number: int = number) -> None:
            await raw.send(line)
            await raw.until((number + 1) * len(line))

        async def over_relay() -> None:
            await agent.write(line)
            got = b""
            while len(got) < len(line):
                got += await agent.read()

        times["SDK"].append(await timed(over_sdk))
        times["relay"].append(await timed(over_relay))
    medians = {name: shown(name, values[ECHOES // 10 :]) for name, values in times.items()}
    print(f"  the relay adds {medians['relay'] - medians['SDK']:.2f} ms (to be at most 5 ms)")
    await raw.kill()
    await agent.terminate()


async def throughput(sandbox: E2BSandbox, box: Any) -> None:
    """A flood of output, in turns."""
    print(f"throughput: {MEGABYTES} MiB of output ({ROUNDS} each, in turns)")
    times: dict[str, list[float]] = {"SDK": [], "relay": []}

    async def over_sdk() -> None:
        raw = RawCommand()
        await raw.start(box, FLOOD)
        await raw.until(MEGABYTES << 20)
        await raw.end()

    async def over_relay() -> None:
        agent = await sandbox.start_agent(["/bin/sh", "-c", FLOOD], {})
        received = 0
        while piece := await agent.read():
            received += len(piece)
        assert received == MEGABYTES << 20
        await agent.wait()

    for _ in range(ROUNDS):
        times["SDK"].append(await timed(over_sdk))
        times["relay"].append(await timed(over_relay))
    medians = {name: shown(name, values) for name, values in times.items()}
    for name, middle in medians.items():
        print(f"  {name}: {MEGABYTES / middle * 1000:.1f} MiB/s")
    print(f"  relay : SDK = {medians['relay'] / medians['SDK']:.2f} : 1 in time (to be at most 1.3 : 1)")


async def many(provider: E2BProvider, cloud: E2BCloud, gateway: Path) -> None:
    """Many sandboxes at once, each with an agent that answers a line."""
    print(f"{AT_ONCE} sandboxes at once: made, one line there and back, ended")
    answered = 0
    sandboxes: list[E2BSandbox] = []

    async def one() -> None:
        nonlocal answered
        sandbox = await provider.create(spec_for(gateway, Limits(processes=64)))
        sandboxes.append(sandbox)
        agent = await sandbox.start_agent(["cat"], {})
        await agent.write(b"hello\n")
        heard = await agent.read()
        answered += heard == b"hello\n"

    async def everyone() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(one)

    async def nobody() -> None:
        async with anyio.create_task_group() as tasks:
            for sandbox in sandboxes:
                tasks.start_soon(sandbox.destroy)

    seconds = await timed(everyone)
    living = len(cloud.sandboxes)
    ending = await timed(nobody)
    print(
        f"  {answered} of {AT_ONCE} answered in {seconds:.1f} s ({seconds / AT_ONCE * 1000:.0f} ms each); {living} ran"
    )
    print(f"  all ended in {ending:.1f} s; {len(cloud.sandboxes)} left")


async def main(cloud: E2BCloud) -> None:
    """All of it."""
    async with AsyncExitStack() as stack:
        gateway = stack.enter_context(gateway_socket())
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        e2b = await stack.enter_async_context(open_e2b(options_for(cloud)))
        await spawns({"E2B (double)": e2b, "bubblewrap": BubblewrapProvider(home, bundled_cli())}, gateway)
        sandbox = await e2b.create(spec_for(gateway))
        box = await cloud.sdk().AsyncSandbox.create("base", timeout=3600)
        await latency(sandbox, box)
        await throughput(sandbox, box)
        await box.kill()
        await sandbox.destroy()
        await many(e2b, cloud, gateway)


if __name__ == "__main__":
    if not users.available():
        print(f"nothing was measured: {NEEDED}")
        sys.exit(0)
    os.environ.update(NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost", E2B_MAX_CONNECTIONS="1000")
    with running_cloud(bundled_cli()) as double:
        anyio.run(main, double)
