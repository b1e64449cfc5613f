"""Places for turns: never more than there are, and no principal before the others because it asks for more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ErrorCode, RookeryError
from server.places import Places


class House:
    """Turns at work, and who asked for one in which order they got it."""

    def __init__(self, limit: int, per_principal: int | None = None, patience_s: float = 30) -> None:
        self.working: list[str] = []
        self.order: list[str] = []
        self.places = Places(limit, per_principal, patience_s, lambda: self.working)

    async def turn(self, principal: str, goes_on: anyio.Event) -> None:
        async with self.places.place(principal):
            self.order.append(principal)
            self.working.append(principal)
        await goes_on.wait()
        self.working.remove(principal)

    @contextmanager
    def patience(self) -> Iterator[None]:
        with anyio.fail_after(10):
            yield


async def test_the_next_place_is_for_the_one_with_the_least_at_work() -> None:
    house, ends = House(2), [anyio.Event() for _ in range(6)]
    with house.patience():
        async with anyio.create_task_group() as tasks:
            for end in ends[:4]:
                tasks.start_soon(house.turn, "greedy", end)
            await anyio.wait_all_tasks_blocked()
            for principal, end in (("modest", ends[4]), ("quiet", ends[5])):
                tasks.start_soon(house.turn, principal, end)
            await anyio.wait_all_tasks_blocked()
            for end, order in ((ends[0], ["modest"]), (ends[4], ["modest", "quiet"])):
                end.set()
                while house.order[2:] != order:
                    await anyio.sleep(0.01)
            for end in ends:
                end.set()
    assert house.order[4:] == ["greedy", "greedy"]


async def test_a_principal_has_no_more_at_work_than_it_may_and_the_others_pass_it() -> None:
    house, goes_on = House(10, per_principal=2), anyio.Event()
    with house.patience():
        async with anyio.create_task_group() as tasks:
            for principal in ("a", "a", "a", "b"):
                tasks.start_soon(house.turn, principal, goes_on)
            await anyio.wait_all_tasks_blocked()
            assert sorted(house.working) == ["a", "a", "b"]
            goes_on.set()
    assert house.order.count("a") == 3


async def test_one_who_waits_too_long_is_told_which_bound_it_was_and_takes_no_place() -> None:
    house = House(2, per_principal=1, patience_s=0)
    house.working = ["a"]
    with pytest.raises(RookeryError, match="ROOKERY_PRINCIPAL_TURNS") as refused:
        async with house.places.place("a"):
            pass
    assert refused.value.code is ErrorCode.TOO_MANY_SESSIONS
    assert refused.value.retryable
    house.working = ["a", "c"]
    with pytest.raises(RookeryError, match="ROOKERY_MAX_SESSIONS"):
        async with house.places.place("b"):
            pass
    house.working = ["a"]
    async with house.places.place("b"):
        pass
    assert not house.places._waiting
    assert not house.places._granted


async def test_one_who_gives_up_leaves_its_place_to_the_next() -> None:
    house, goes_on = House(1), anyio.Event()
    with house.patience():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.turn, "a", goes_on)
            await anyio.wait_all_tasks_blocked()
            with anyio.CancelScope() as impatient:
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(house.turn, "b", goes_on)
                    await anyio.wait_all_tasks_blocked()
                    impatient.cancel()
            tasks.start_soon(house.turn, "c", goes_on)
            await anyio.wait_all_tasks_blocked()
            goes_on.set()
    assert house.order == ["a", "c"]


@given(st.lists(st.sampled_from("abc"), max_size=20), st.integers(1, 4), st.integers(1, 4))
def test_there_are_never_more_at_work_than_places(asked: list[str], limit: int, per_principal: int) -> None:
    async def check() -> None:
        house = House(limit, per_principal)
        most = 0

        async def one(principal: str) -> None:
            nonlocal most
            async with house.places.place(principal):
                await anyio.lowlevel.checkpoint()
                house.working.append(principal)
            assert len(house.working) <= limit
            assert all(house.working.count(name) <= per_principal for name in house.working)
            most = max(most, len(house.working))
            await anyio.lowlevel.checkpoint()
            house.working.remove(principal)
            house.places._grant()

        with house.patience():
            async with anyio.create_task_group() as tasks:
                for principal in asked:
                    tasks.start_soon(one, principal)
        assert not house.places._granted
        assert bool(asked) == (most > 0)

    anyio.run(check)
