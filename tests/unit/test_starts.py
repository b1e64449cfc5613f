"""How many agents come up at once."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from server.sandboxes.base import Capabilities
from server.starts import Starts

HERE = Capabilities(host_workspace=True)
ELSEWHERE = Capabilities()


@pytest.mark.parametrize(("where", "most"), [(HERE, 2), (ELSEWHERE, 5)])
async def test_starts_on_this_machine_take_turns_and_those_elsewhere_do_not(where: Capabilities, most: int) -> None:
    starts = Starts(at_once=2)
    go_on: list[anyio.Event] = []
    begun: list[int] = []
    ended = 0

    async def start(number: int) -> None:
        nonlocal ended
        async with starts.place(where):
            begun.append(number)
            go_on.append(anyio.Event())
            await go_on[-1].wait()
            ended += 1

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(start, number)
                await anyio.wait_all_tasks_blocked()
            assert len(begun) == most
            while ended < 5:
                go_on[ended].set()
                await anyio.wait_all_tasks_blocked()
                assert len(begun) - ended <= most
    assert begun == [0, 1, 2, 3, 4]


async def test_a_start_that_fails_or_is_given_up_gives_its_place_back() -> None:
    starts = Starts(at_once=1)

    async def fails() -> Any:
        async with starts.place(HERE):
            raise OSError

    with anyio.fail_after(5):
        with pytest.raises(OSError):
            await fails()
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with starts.place(HERE):
                await anyio.sleep_forever()
        async with starts.place(HERE):
            pass


async def test_a_start_that_is_called_off_waits_no_longer_and_takes_no_place() -> None:
    starts, called_off = Starts(at_once=1), anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, starts.place(HERE) as first:
            assert first

            async def waiting() -> None:
                async with starts.place(HERE, called_off) as placed:
                    assert not placed

            group.start_soon(waiting)
            await anyio.wait_all_tasks_blocked()
            called_off.set()
            await anyio.wait_all_tasks_blocked()
        async with starts.place(HERE, anyio.Event()) as placed:
            assert placed
