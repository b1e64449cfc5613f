"""Ends, starts and inputs of a bubblewrap sandbox (rows S06 to S11 of the catalogue of attacks), tried for real."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import CLI
from server.sandboxes.bubblewrap import BubblewrapProvider
from server.sandboxes.bubblewrap.sandbox import BubblewrapSandbox
from tests.sandboxes import (
    AGENT_COMMAND,
    AGENT_VARIABLES,
    PATIENCE_S,
    bundled_cli,
    gateway_socket,
    processes_of,
    sandbox_in,
    shell,
    spec_for,
    until_gone,
)


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[BubblewrapSandbox]:
    """A sandbox in a home of its own."""
    async with sandbox_in(tmp_path) as sandbox:
        yield sandbox


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 3)
        os.chdir("/")
        open("/workspace/up", "w").close()
        while True:
            time.sleep(1)
    os._exit(0)
while not os.path.exists("/workspace/up"):
    time.sleep(0.01)
print("up", flush=True)
"""


async def test_s06_a_daemon_does_not_outlive_the_agent_that_ends_by_itself(sandbox: BubblewrapSandbox) -> None:
    """S06: setsid and a double fork are no way to stay."""
    agent = await sandbox.start_agent(["python3", "-c", DAEMON], {})
    with anyio.fail_after(PATIENCE_S):
        assert await agent.read() == b"up\n"
        assert await agent.wait() == 0
    await until_gone(sandbox.reference)
    await agent.terminate()


async def test_s06_a_daemon_does_not_outlive_the_end_of_the_agent(sandbox: BubblewrapSandbox) -> None:
    """S06: nothing is left the moment that terminate returns, and nothing of its control group."""
    agent = await sandbox.start_agent(["python3", "-c", DAEMON + "time.sleep(600)"], {})
    with anyio.fail_after(PATIENCE_S):
        assert await agent.read() == b"up\n"
    group = sandbox.control_group
    assert len(processes_of(sandbox.reference)) >= 3
    await agent.terminate()
    assert processes_of(sandbox.reference) == []
    assert group is not None
    assert not any(Path(file).exists() for file in group.joins)


async def test_s06_a_start_that_is_cancelled_leaves_nothing_at_any_moment(sandbox: BubblewrapSandbox) -> None:
    """S06 and P03: at every few milliseconds of a start, which takes some thirty."""
    for milliseconds in range(0, 60, 3):
        with anyio.move_on_after(milliseconds / 1000):
            await sandbox.start_agent(["sleep", "600"], {})
        await sandbox.stop()
        assert processes_of(sandbox.reference) == []
    assert sandbox.control_group is None
    assert await shell(sandbox, "echo fine") == "fine"


SERVER = """
import asyncio, json, sys
from pathlib import Path
from tests.sandboxes import sandbox_in

async def main():
    async with sandbox_in(Path(sys.argv[1])) as sandbox:
        agent = await sandbox.start_agent(["python3", "-c", sys.argv[2]], {})
        await agent.read()
        print(json.dumps(sandbox.reference), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_s06_killing_the_server_kills_its_sandboxes(tmp_path: Path) -> None:
    """S06 and C01: kill -9 of the server, through launcher, bubblewrap and its init."""
    command = [sys.executable, "-c", SERVER, str(tmp_path), DAEMON + "time.sleep(600)"]
    async with await anyio.open_process(command, stderr=None, cwd=Path(__file__).parents[2]) as server:
        try:
            assert server.stdout is not None
            with anyio.fail_after(PATIENCE_S):
                reference = json.loads(await server.stdout.receive())
            assert len(processes_of(reference)) >= 3
        finally:
            server.kill()
    await until_gone(reference)


@pytest.mark.parametrize("fault", ["missing", "failing", "hanging up"])
async def test_s07_a_sandbox_that_cannot_start_is_an_error_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """S07: never unsandboxed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    if fault != "missing":
        fake = programs / "bwrap"
        fake.write_text("#!/bin/sh\n" + ("echo no namespaces >&2; exit 1\n" if fault == "failing" else "exit 0\n"))
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr("server.sandboxes.bubblewrap.spawn.STAGE", "/mnt")
    witness = tmp_path / "witness"
    with gateway_socket() as gateway:
        provider = BubblewrapProvider(tmp_path / "home", bundled_cli())
        with pytest.raises(RookeryError) as caught:
            sandbox = await provider.create(spec_for(gateway))
            await sandbox.start_agent(["/bin/touch", str(witness)], {})
        checks = await provider.probe()
    assert caught.value.code is ErrorCode.SANDBOX_UNAVAILABLE
    assert not witness.exists()
    assert any(not check.ok and check.remedy for check in checks)


@pytest.mark.parametrize(("function", "answer"), [("system", "Darwin"), ("machine", "riscv64")])
async def test_s07_an_unknown_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, answer: str
) -> None:
    """S07: no filter for the architecture, or no Linux: no sandbox."""
    monkeypatch.setattr(platform, function, lambda: answer)
    with gateway_socket() as gateway, pytest.raises(RookeryError) as caught:
        await BubblewrapProvider(tmp_path, bundled_cli()).create(spec_for(gateway))
    assert caught.value.code is ErrorCode.SANDBOX_UNAVAILABLE
    assert answer in caught.value.message


async def test_s07_a_gateway_that_is_gone_is_told_before_the_agent_starts(tmp_path: Path) -> None:
    """S07: no agent without its only way to a model."""
    with gateway_socket() as gateway:
        sandbox = await BubblewrapProvider(tmp_path, bundled_cli()).create(spec_for(gateway))
    with pytest.raises(RookeryError) as caught:
        await sandbox.start_agent([CLI, "--version"], {})
    assert caught.value.code is ErrorCode.SANDBOX_UNAVAILABLE
    await sandbox.destroy()


def processes_with(reference: Mapping[str, Any], command: str) -> list[Path]:
    """Processes of a sandbox whose command line begins so, in /proc; one that ends meanwhile has none."""
    found = []
    for process in processes_of(reference):
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(command.encode()):
                found.append(Path(f"/proc/{process}"))
    return found


async def test_s08_the_cli_itself_runs_inside(sandbox: BubblewrapSandbox) -> None:
    """S08: not its shell commands only: its own file and web tools too are held by the same walls."""
    agent = await sandbox.start_agent(
        AGENT_COMMAND,
        AGENT_VARIABLES,
    )
    try:
        # The launching shell turns into it a moment after the start.
        with anyio.fail_after(PATIENCE_S):
            while not (found := processes_with(sandbox.reference, CLI)):
                await anyio.sleep(0.01)
        [cli] = found
        for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
            assert os.readlink(cli / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}"), kind
        status = (cli / "status").read_text()
        assert "Seccomp:\t2\n" in status
        assert "NoNewPrivs:\t1\n" in status
        assert f"CapEff:\t{0:016x}\n" in status
        assert f"Uid:\t{sandbox.reference['uid']}\t" in status
        assert sandbox.reference["uid"] != 0
    finally:
        await agent.terminate()


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "NODE_OPTIONS", "PYTHONSTARTUP", "TERMINAL", "a=b", "1a", ""]
)
async def test_s10_variables_that_load_code_are_refused(sandbox: BubblewrapSandbox, name: str) -> None:
    """S10: environment variables injected into a start."""
    for start in (sandbox.run, sandbox.start_agent):
        with pytest.raises(RookeryError) as caught:
            await start(["true"], env={name: "/workspace/evil"})
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("argv", [["--bind", "/", "/mnt"], ["-c"], [], [""], ["a\0b"], ["true", "\0"]])
async def test_s11_a_command_cannot_be_taken_for_options(sandbox: BubblewrapSandbox, argv: list[str]) -> None:
    """S11: a word that begins with a dash in the place of a program."""
    with pytest.raises(RookeryError) as caught:
        await sandbox.run(argv)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_s11_words_of_a_command_reach_it_as_they_are(sandbox: BubblewrapSandbox) -> None:
    """S11: options for bubblewrap or the shell among the arguments are nothing but arguments."""
    words = ["--bind", "/", "/mnt", "--", "-c", "$(id)", "a'b\"c\n", ""]
    result = await sandbox.run(["python3", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *words])
    assert json.loads(result.stdout) == words


@pytest.mark.parametrize("session_id", ["-rf", "../up", ".trash-1", "", "a/b", "a\nb", "x" * 200])
async def test_s11_a_session_id_cannot_name_another_directory(tmp_path: Path, session_id: str) -> None:
    """S11: ids are checked although they are ours."""
    with gateway_socket() as gateway:
        spec = spec_for(gateway)
        spec = type(spec)(session_id=session_id, gateway_socket=gateway)
        with pytest.raises(RookeryError) as caught:
            await BubblewrapProvider(tmp_path, bundled_cli()).create(spec)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert list(tmp_path.iterdir()) == []
