"""The rate limiter: one pause for all agents, a few at a time afterwards, in turn by session."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from server.clock import SYSTEM_CLOCK
from server.gateway.grants import Grant, GrantTable
from server.gateway.limiter import LONGEST_PAUSE_S, LONGEST_WAIT_S, MAX_LANES, FleetLimiter
from server.gateway.refusals import Refusal

MODEL = "claude-sonnet-4-5"


def a_limiter(jitter: float = 0.0) -> FleetLimiter:
    return FleetLimiter(SYSTEM_CLOCK, lambda: jitter)


def a_grant(session_id: str = "s1") -> Grant:
    grant = GrantTable(SYSTEM_CLOCK).open()
    grant.bind(session_id=session_id, root_id=session_id, principal="p")
    return grant


async def answered(limiter: FleetLimiter, status: int, retry_after: float | None = None, model: str = MODEL) -> float:
    """One request; when it was let go."""
    async with limiter.slot(model, a_grant()) as slot:
        at = anyio.current_time()
        slot.answered(status, retry_after)
        return at


async def test_nobody_waits_while_the_api_takes_requests() -> None:
    limiter = a_limiter()
    with anyio.fail_after(1):
        for _ in range(100):
            await answered(limiter, 200)


@pytest.mark.parametrize("status", [429, 529])
async def test_one_refusal_makes_all_agents_wait_as_long_as_the_api_says(status: int) -> None:
    limiter = a_limiter()
    refused_at = await answered(limiter, status, 0.1)
    with anyio.fail_after(5):
        assert await answered(limiter, 200) - refused_at >= 0.1


async def test_other_errors_make_nobody_wait() -> None:
    limiter = a_limiter()
    for status in (400, 401, 404, 500):
        await answered(limiter, status, 100)
    with anyio.fail_after(1):
        await answered(limiter, 200)


async def test_pauses_grow_while_the_api_refuses_and_are_prolonged_by_jitter() -> None:
    limiter = a_limiter(jitter=1.0)
    with anyio.fail_after(20):
        first = await answered(limiter, 429)
        second = await answered(limiter, 429)
        third = await answered(limiter, 200)
    assert second - first >= 0.5 * 1.25
    assert third - second >= 1.0 * 1.25


async def test_a_pause_has_its_bound_however_often_the_api_has_refused() -> None:
    """A night's outage, with many agents that ask on and on."""
    limiter = a_limiter()
    async with limiter.slot(MODEL, a_grant()) as slot:
        for _ in range(2000):
            slot.answered(529, None)
    assert limiter.open_again(MODEL) <= SYSTEM_CLOCK.now() + timedelta(seconds=LONGEST_PAUSE_S)


async def test_limits_hold_for_one_model_only() -> None:
    limiter = a_limiter()
    await answered(limiter, 529, 30, model="claude-opus-4-5")
    with anyio.fail_after(1):
        await answered(limiter, 200, model=MODEL)


async def test_who_waits_is_shown_until_when() -> None:
    limiter = a_limiter()
    await answered(limiter, 429, 30)
    grant = a_grant()
    before = SYSTEM_CLOCK.now()
    async with anyio.create_task_group() as group:
        group.start_soon(enter, limiter, grant)
        await anyio.wait_all_tasks_blocked()
        assert grant.waiting_until is not None
        assert 29 < (grant.waiting_until - before).total_seconds() < 31
        group.cancel_scope.cancel()
    assert grant.waiting_until is None


async def enter(limiter: FleetLimiter, grant: Grant) -> None:
    async with limiter.slot(MODEL, grant):
        pass


async def test_a_pause_too_long_to_wait_for_is_told_at_once() -> None:
    limiter = a_limiter()
    await answered(limiter, 429, LONGEST_WAIT_S * 60)
    with anyio.fail_after(1), pytest.raises(Refusal) as refused:
        await answered(limiter, 200)
    assert refused.value.status == 429
    assert refused.value.retry_after == LONGEST_WAIT_S * 60
    assert (b"x-should-retry", b"false") in refused.value.headers


async def test_after_a_pause_they_come_back_a_few_at_a_time_more_with_each_success() -> None:
    limiter = a_limiter()
    running = done = 0
    seen: list[int] = []

    async def ask(number: int) -> None:
        nonlocal running, done
        async with limiter.slot(MODEL, a_grant(f"s{number}")) as slot:
            running += 1
            seen.append(running)
            await anyio.wait_all_tasks_blocked()
            slot.answered(200, None)
            running -= 1
            done += 1

    await answered(limiter, 429, 0.05)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(ask, number)
    assert done == 40
    # One goes first; its success lets two go, theirs four, and so on.
    assert seen[0] == 1
    assert max(seen[:3]) <= 2
    assert max(seen[:7]) <= 4
    assert limiter._lanes[MODEL].room is None


async def test_sessions_take_turns_however_many_requests_one_of_them_has() -> None:
    limiter = a_limiter()
    order: list[str] = []

    async def ask(session_id: str) -> None:
        async with limiter.slot(MODEL, a_grant(session_id)) as slot:
            order.append(session_id)
            slot.answered(500, None)

    await answered(limiter, 429, 0.1)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for session_id in ["greedy"] * 6 + ["modest", "shy"]:
                group.start_soon(ask, session_id)
                await anyio.wait_all_tasks_blocked()
    assert set(order[:3]) == {"greedy", "modest", "shy"}
    assert order[3:] == ["greedy"] * 5


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    limiter = a_limiter()
    await answered(limiter, 429, 0.2)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(enter, limiter, a_grant())
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    lane = limiter._lanes[MODEL]
    assert not lane.waiting
    with anyio.fail_after(5):
        await answered(limiter, 200)
    assert lane.running == 0


async def test_the_number_of_lanes_is_bounded() -> None:
    limiter = a_limiter()
    for number in range(2 * MAX_LANES):
        await answered(limiter, 200, model=f"model-{number}")
    assert len(limiter._lanes) <= MAX_LANES + 1
