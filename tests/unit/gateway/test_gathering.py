"""Taking together what of a stream is there at once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from server.gateway.gathering import MOST_GATHERED, Gathering

PATIENCE_S = 5


async def test_what_is_there_at_once_goes_on_in_one_piece_and_what_comes_later_does_not_wait() -> None:
    go_on, seen = anyio.Event(), list[bytes]()

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(3):
            yield str(number).encode()
        await go_on.wait()
        yield b"3"

    async def handle(piece: bytes) -> None:
        seen.append(piece)
        go_on.set()

    with anyio.fail_after(PATIENCE_S):
        await Gathering(chunks()).each(handle)
    assert seen == [b"012", b"3"]


async def test_an_error_comes_after_all_that_came_before_it() -> None:
    seen: list[bytes] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"
        raise OSError("broken off")

    async def handle(piece: bytes) -> None:
        seen.append(piece)

    with anyio.fail_after(PATIENCE_S), pytest.raises(OSError, match="broken off"):
        await Gathering(chunks()).each(handle)
    assert b"".join(seen) == b"ab"


async def test_a_slow_reader_holds_up_the_upstream_and_not_the_memory() -> None:
    size, most, given, taken = MOST_GATHERED // 4, 0, 0, 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(40):
            given += size
            yield bytes(size)

    async def handle(piece: bytes) -> None:
        nonlocal most, taken
        await anyio.wait_all_tasks_blocked()
        taken += len(piece)
        most = max(most, given - taken)

    with anyio.fail_after(PATIENCE_S):
        await Gathering(chunks()).each(handle)
    assert taken == given == 40 * size
    assert most <= MOST_GATHERED


async def test_what_nobody_took_is_there_for_the_account_when_the_reader_fails_or_leaves() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        while True:
            await anyio.lowlevel.checkpoint()
            yield b"." * (MOST_GATHERED // 4)

    leaving = Gathering(chunks())
    with anyio.fail_after(PATIENCE_S), anyio.CancelScope() as scope:

        async def leave(piece: bytes) -> None:
            assert piece == b"first"
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        await leaving.each(leave)
    rest = leaving.rest()
    assert rest
    assert set(rest) == {ord(".")}

    async def fail(_: bytes) -> None:
        raise KeyError

    with anyio.fail_after(PATIENCE_S), pytest.raises(KeyError):
        await Gathering(chunks()).each(fail)
