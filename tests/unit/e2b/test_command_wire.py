"""The wire over a command of E2B's: what comes waits for its reader, within bounds."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import anyio

from server.sandboxes.e2b.command_wire import WAITING, CommandWire

PATIENCE_S = 20


class Commands:
    """A stand-in for the SDK's commands: one whose output is what the test says."""

    pid = 7

    def __init__(self) -> None:
        self.commands = self
        self.over = asyncio.Event()
        self.on_stdout: Any = None

    async def run(self, _command: str, *, on_stdout: Any, **_options: Any) -> Commands:
        self.on_stdout = on_stdout
        return self

    def stream_input(self, _pid: int, **_options: Any) -> Commands:
        return self

    async def wait(self) -> None:
        await self.over.wait()

    async def close(self) -> None:
        pass

    async def disconnect(self) -> None:
        self.over.set()


async def test_what_came_is_read_at_once_in_its_order_and_then_the_end() -> None:
    box = Commands()
    wire = await CommandWire.opened(cast("Any", box))
    for text in ("one ", "größer ", "日本"):
        await box.on_stdout(text)
    box.over.set()
    with anyio.fail_after(PATIENCE_S):
        await asyncio.wait([cast("Any", wire._ending)])
        assert await wire.receive() == "one größer 日本".encode()
        assert await wire.receive() == b""
    await wire.aclose()


async def test_output_that_nobody_reads_holds_the_stream_up_until_it_is_read_or_the_wire_is_closed() -> None:
    box = Commands()
    wire = await CommandWire.opened(cast("Any", box))
    chunk = "x" * 32_768
    given = 0

    async def flood() -> None:
        nonlocal given
        for _ in range(WAITING // len(chunk) * 3):
            await box.on_stdout(chunk)
            given += len(chunk)

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(PATIENCE_S):
            tasks.start_soon(flood)
            await anyio.wait_all_tasks_blocked()
            assert given < WAITING
            assert len(await wire.receive()) == WAITING
            await anyio.wait_all_tasks_blocked()
            assert WAITING <= given < 2 * WAITING
            await wire.aclose()
            # The rest goes nowhere, and nothing hangs.
    assert given == WAITING * 3
    assert await wire.receive() == b""
