"""An agent is held still only where nothing else runs in its sandbox, and then nothing in there changes."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from server.sandboxes.bubblewrap import stillness as module
from server.sandboxes.bubblewrap.sandbox import BubblewrapSandbox
from server.sandboxes.bubblewrap.stillness import Stillness
from tests.sandboxes import PATIENCE_S, sandbox_in

BUSY = """
import signal, threading
signal.signal(signal.SIGTERM, lambda *_: open("/workspace/told", "w").close())
def count():
    with open("/workspace/" + threading.current_thread().name, "w") as file:
        while True:
            print(".", file=file, flush=True)
for name in ("one", "two", "three"):
    threading.Thread(target=count, name=name).start()
"""
"""Writes all the time, by several threads, and wants a word at its end."""


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[BubblewrapSandbox]:
    """A sandbox in a home of its own."""
    async with sandbox_in(tmp_path) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with much else to do, a thread may not come to its stop within a second."""
    monkeypatch.setattr(module, "_PATIENCE_S", PATIENCE_S)


def sizes(sandbox: BubblewrapSandbox) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sandbox.workspace.iterdir()}


async def grows(sandbox: BubblewrapSandbox) -> None:
    before = sizes(sandbox)
    with anyio.fail_after(PATIENCE_S):
        while not all(sizes(sandbox).get(name, 0) > before.get(name, 0) for name in ("one", "two", "three")):
            await anyio.sleep(0.01)


async def test_nothing_changes_while_an_agent_is_held_and_then_it_goes_on(sandbox: BubblewrapSandbox) -> None:
    agent = await sandbox.start_agent(["python3", "-c", BUSY], {})
    await grows(sandbox)
    assert await agent.hold()
    before = sizes(sandbox)
    assert (await sandbox.run(["true"])).exit_code == 0, "much time for a loop"
    assert sizes(sandbox) == before
    agent.release()
    await grows(sandbox)
    agent.kill()


async def test_an_agent_that_is_held_is_ended_without_another_word(sandbox: BubblewrapSandbox) -> None:
    agent = await sandbox.start_agent(["python3", "-c", BUSY], {})
    await grows(sandbox)
    assert await agent.hold()
    before = sizes(sandbox)
    await agent.terminate()
    assert agent.returncode is not None
    assert sizes(sandbox) == before
    assert not await agent.hold(), "nothing is there to be held"


async def test_the_end_of_an_agent_that_is_killed_while_it_is_held_is_heard_of(sandbox: BubblewrapSandbox) -> None:
    agent = await sandbox.start_agent(["python3", "-c", BUSY], {})
    await grows(sandbox)
    assert await agent.hold()
    assert agent._stillness.agent is not None
    signal.pidfd_send_signal(agent._stillness.agent, signal.SIGKILL)
    with anyio.fail_after(PATIENCE_S):
        assert await agent.wait() == -signal.SIGKILL


async def test_an_agent_is_not_held_while_anything_else_runs_in_its_sandbox(sandbox: BubblewrapSandbox) -> None:
    """A daemon too, which is nobody's child any more."""
    detached = 'setsid python3 -c "$0" & echo up; exec tail -f /dev/null'
    for command in (detached, f"({detached}) & exec tail -f /dev/null"):
        agent = await sandbox.start_agent(["sh", "-c", command, BUSY], {})
        assert await agent.read() == b"up\n"
        await grows(sandbox)
        assert not await agent.hold()
        await grows(sandbox)


async def test_what_starts_while_all_is_being_stopped_is_seen(
    sandbox: BubblewrapSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks = "while read -r line; do setsid sleep 300 & echo up; done"
    agent = await sandbox.start_agent(["sh", "-c", forks], {})
    agent._stillness = stillness = Stillness(agent._init.pid, agent._init.descriptor)
    send = stillness._signal

    async def start_another() -> None:
        await agent.write(b"go\n")
        assert await agent.read() == b"up\n"

    def after_a_moment(number: int) -> None:
        anyio.from_thread.run(start_another)
        monkeypatch.undo()
        send(number)

    monkeypatch.setattr(stillness, "_signal", after_a_moment)
    assert not await agent.hold()
    await start_another()
