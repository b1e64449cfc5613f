"""What an agent can use up (rows D01 to D06 of the catalogue of attacks), tried for real."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import Limits
from server.sandboxes.bubblewrap.cgroups import ControlGroups
from server.sandboxes.bubblewrap.limits import NICENESS
from server.sandboxes.bubblewrap.sandbox import BubblewrapSandbox
from tests.sandboxes import PATIENCE_S, processes_of, python, sandbox_in, shell

SMALL = Limits(memory_mb=256, processes=32, cpus=0.5, disk_mb=16)


def needs(controller: str) -> pytest.MarkDecorator:
    """Skip, and say so, where the machine offers no such control group."""
    missing = controller not in ControlGroups().controllers
    return pytest.mark.skipif(missing, reason=f"NOT TESTED: no control group for {controller} can be made here")


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[BubblewrapSandbox]:
    """A sandbox with small limits."""
    async with sandbox_in(tmp_path, SMALL) as sandbox:
        yield sandbox


async def test_d01_a_fork_bomb_stops_at_the_limit(sandbox: BubblewrapSandbox, tmp_path: Path) -> None:
    """D01: the number of processes is bounded, and a neighbour feels nothing."""
    code = """
import json, os, time
count = 0
try:
    while count < 5000:
        if os.fork() == 0:
            time.sleep(600)
        count += 1
except OSError as error:
    print(json.dumps([count, error.errno]), flush=True)
    os.kill(-1, 9)
"""
    agent = await sandbox.start_agent(["python3", "-c", code], {})
    try:
        with anyio.fail_after(PATIENCE_S):
            count, error = json.loads(await agent.read())
        assert 8 <= count <= SMALL.processes
        assert error == 11
        async with sandbox_in(tmp_path / "neighbour", SMALL) as neighbour:
            assert await shell(neighbour, "echo fine") == "fine"
    finally:
        await agent.terminate()
    assert processes_of(sandbox.reference) == []


async def test_d01_threads_count_too(sandbox: BubblewrapSandbox) -> None:
    """D01: a bomb of threads."""
    code = """
import json, threading
gate, count = threading.Event(), 0
try:
    while count < 5000:
        threading.Thread(target=gate.wait, daemon=True).start()
        count += 1
except RuntimeError:
    pass
gate.set()
print(json.dumps(count))
"""
    assert 8 <= await python(sandbox, code) <= SMALL.processes


@needs("memory")
async def test_d02_a_memory_hog_is_ended_alone(sandbox: BubblewrapSandbox, tmp_path: Path) -> None:
    """D02: memory is bounded by the control group."""
    result = await sandbox.run(["python3", "-c", "x = bytearray(1 << 30); print(len(x))"])
    assert result.exit_code == 137
    assert result.stdout == b""
    assert b"memory limit of 256 MiB" in result.stderr
    assert await shell(sandbox, "echo fine") == "fine"


@pytest.mark.parametrize("place", ["/tmp", "/home/agent", "/dev/shm"])
async def test_d02_file_systems_in_memory_are_bounded(sandbox: BubblewrapSandbox, place: str) -> None:
    """D02: filling them ends with "no space", well below the memory of the sandbox."""
    code = f"""
import json
total = 0
try:
    while total < 1 << 30:
        with open(f"{place}/{{total}}", "wb") as file:
            total += file.write(bytes(8 << 20))
except OSError as error:
    print(json.dumps([error.errno, total >> 20]))
"""
    error, mib = await python(sandbox, code)
    assert error == 28
    assert mib <= SMALL.memory_mb // 4


async def test_d02_the_root_of_the_sandbox_holds_nothing(sandbox: BubblewrapSandbox) -> None:
    """D02: bubblewrap's own file systems in memory have no size, so they are read-only."""
    for path in ("/x", "/dev/x", "/run/x", "/run/rookery/x", "/home/x", "/opt/x"):
        assert "Read-only" in await shell(sandbox, f"touch {path}"), path


async def test_d03_one_file_cannot_pass_the_size_of_the_disk(sandbox: BubblewrapSandbox) -> None:
    """D03: the kernel stops it at once, sparse files too."""
    result = await sandbox.run(["/bin/sh", "-c", "head -c 40000000 /dev/zero > big"])
    assert result.exit_code != 0
    assert (sandbox.workspace / "big").stat().st_size == SMALL.disk_mb << 20
    assert (await sandbox.run(["truncate", "-s", "10T", "sparse"])).exit_code != 0


@pytest.mark.parametrize("talk", ["", "echo $i;"])
async def test_d03_many_files_beyond_the_size_of_the_disk_end_the_agent(sandbox: BubblewrapSandbox, talk: str) -> None:
    """D03: the workspace as a whole is watched, whether the agent talks or is silent; it may come again to tidy up."""
    script = f"i=0; while :; do head -c 1000000 /dev/zero > f$i; {talk} i=$((i+1)); done"
    agent = await sandbox.start_agent(["/bin/sh", "-c", script], {})
    try:
        with anyio.fail_after(PATIENCE_S):
            while await agent.read():
                pass
            assert await agent.wait() != 0
        assert "disk limit" in agent.stderr_tail()
    finally:
        await agent.terminate()
    assert await sandbox.usage() > SMALL.disk_mb << 20
    assert await shell(sandbox, "sleep 1.3; rm f*; ls") == ""
    assert await sandbox.usage() < 1 << 20


async def test_d03_many_empty_files_count_as_well(sandbox: BubblewrapSandbox) -> None:
    """D03: inodes are room too."""
    for number in range(5000):
        (sandbox.workspace / f"{number}").touch()
    assert await sandbox.usage() > SMALL.disk_mb << 20


async def test_d03_endless_output_is_bounded(sandbox: BubblewrapSandbox) -> None:
    """D03: a line without end, on both streams, of bytes that are no text."""
    started = time.monotonic()
    with pytest.raises(RookeryError) as caught:
        await sandbox.run(["/bin/sh", "-c", "cat /dev/urandom & cat /dev/urandom >&2"], timeout_s=0.5, max_output=1000)
    assert caught.value.code is ErrorCode.TIMEOUT
    assert time.monotonic() - started < 5
    result = await sandbox.run(
        ["/bin/sh", "-c", "head -c 9999999 /dev/urandom | tee out; cat out >&2"], max_output=1000
    )
    assert (len(result.stdout), len(result.stderr), result.truncated) == (1000, 1000, True)


@needs("cpu")
async def test_d04_a_spin_gets_its_share_of_the_cpu_and_no_more(sandbox: BubblewrapSandbox) -> None:
    """D04: half a core."""
    code = """
import json, time
wall, own = time.monotonic(), time.process_time()
while time.monotonic() < wall + 1.5:
    pass
print(json.dumps(time.process_time() - own))
"""
    assert await python(sandbox, code) < 1.5 * SMALL.cpus * 1.3


async def test_d04_agents_give_way_to_the_server_and_cannot_take_it_back(sandbox: BubblewrapSandbox) -> None:
    """D04: dozens that start at once must leave the server time to answer them."""
    code = """
import json, os
refused = 0
for raise_it in (lambda: os.setpriority(os.PRIO_PROCESS, 0, 0), lambda: os.setpriority(os.PRIO_USER, 0, -5)):
    try:
        raise_it()
    except OSError:
        refused += 1
child = os.popen("nice").read()
print(json.dumps([refused, int(child), os.getpriority(os.PRIO_PROCESS, 0)]))
"""
    lowered = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
    assert await python(sandbox, code) == [2, lowered, lowered]


async def test_d05_open_files_are_bounded_inside(sandbox: BubblewrapSandbox) -> None:
    """D05: a leak of descriptors ends inside the session."""
    code = """
import json, os
count = 0
try:
    while count < 100000:
        os.open("/dev/null", os.O_RDONLY)
        count += 1
except OSError as error:
    print(json.dumps([count, error.errno]))
"""
    count, error = await python(sandbox, code)
    assert count <= 4096
    assert error == 24


async def test_d05_the_server_keeps_no_descriptor_of_an_ended_agent(sandbox: BubblewrapSandbox) -> None:
    """D05: the number of open files of the server is flat, also after starts that failed."""

    async def once() -> int:
        agent = await sandbox.start_agent(["cat"], {})
        await agent.write(b"x")
        await agent.terminate()
        await sandbox.run(["true"])
        with pytest.raises(RookeryError):
            await sandbox.run(["-refused"])
        return len(os.listdir("/proc/self/fd"))

    await once()
    counts = {await once() for _ in range(5)}
    assert len(counts) == 1


async def test_d06_a_process_that_ignores_term_is_killed_and_reaped(sandbox: BubblewrapSandbox) -> None:
    """D06: bounded TERM, then KILL of everything, then reaped; no zombie is left either."""
    code = """
import signal, sys, time
for number in range(1, signal.NSIG):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
print("up", flush=True)
while True:
    time.sleep(1)
"""
    agent = await sandbox.start_agent(["python3", "-c", code], {})
    with anyio.fail_after(PATIENCE_S):
        assert await agent.read() == b"up\n"
        await agent.terminate()
    assert agent.returncode == -9
    assert processes_of(sandbox.reference) == []
    # Other tests may have left helpers of their own running; what is ours must not be there as a zombie.
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert [pid for pid in children if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()] == []
