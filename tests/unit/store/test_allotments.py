"""Children reserve from their parent: what it has promised them it cannot spend, and they cannot be promised more."""

from __future__ import annotations

import uuid
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.budgets import Cap, Caps, Shortage
from server.errors import ErrorCode, RookeryError
from server.models import SessionState, Usage
from server.store import Store
from tests.unit.store.records import a_request, end_turn, ended, idle, started
from tests.unit.store.test_budgets import INPUT_NANO, OUTPUT_NANO, a_claim, granted, refused, settled

DOLLAR = 1_000_000_000


async def child_of(
    store: Store, parent: str, name: str, dollars: float, root: str | None = None, **fields: Any
) -> None:
    """A spawned child."""
    cap = round(dollars * DOLLAR)
    await started(store, name, parent_id=parent, root_id=root or parent, budget_nano_usd=cap, **fields)


async def left(store: Store, session_id: str) -> float | None:
    """Dollars that a session may still spend or give."""
    remaining = (await store.standing(session_id)).remaining_nano_usd
    return None if remaining is None else remaining / DOLLAR


async def test_a_childs_cap_is_set_aside_in_its_parents_budget(store: Store) -> None:
    await started(store, "p", budget_nano_usd=10 * DOLLAR)
    await child_of(store, "p", "c1", 4)
    await child_of(store, "p", "c2", 5)
    assert await left(store, "p") == 1
    with pytest.raises(RookeryError) as caught:
        await child_of(store, "p", "c3", 1.5)
    assert caught.value.code is ErrorCode.BUDGET_EXCEEDED
    assert "$1.0000" in caught.value.message
    with pytest.raises(RookeryError, match="session_not_found"):
        await store.session("alice", "c3")
    await child_of(store, "p", "c3", 1)
    assert await left(store, "p") == 0
    refused(await store.reserve(a_claim("r1", "p")))
    granted(await store.reserve(a_claim("r2", "c1", root_id="p")))


async def test_what_a_child_spends_moves_to_its_parents_spending_and_the_rest_stays_set_aside(store: Store) -> None:
    await started(store, "p", budget_nano_usd=10 * DOLLAR)
    await child_of(store, "p", "c", 4)
    reservation = granted(await store.reserve(a_claim("r1", "c", root_id="p")))
    standing = await store.standing("p")
    assert standing.reserved_nano_usd == reservation.nano_usd
    assert standing.allotted_nano_usd == 4 * DOLLAR - reservation.nano_usd
    assert await left(store, "p") == 6
    await settled(store, "r1", "c", root_id="p")
    spent = 1000 * INPUT_NANO + 100 * OUTPUT_NANO
    standing = await store.standing("p")
    assert (standing.spent_nano_usd, standing.reserved_nano_usd) == (spent, 0)
    assert standing.allotted_nano_usd == 4 * DOLLAR - spent
    assert await left(store, "p") == 6
    assert (await store.standing("c")).remaining_nano_usd == 4 * DOLLAR - spent


async def test_what_a_child_has_not_spent_goes_back_when_it_ends_once(store: Store) -> None:
    await started(store, "p", budget_nano_usd=10 * DOLLAR)
    await child_of(store, "p", "c", 4)
    await store.record_request(a_request("q1", "c", root_id="p", nano_usd=DOLLAR))
    granted(await store.reserve(a_claim("r1", "c", root_id="p")))
    await store.move("c", SessionState.FAILED)
    await store.move("c", SessionState.ENDED)
    # Settled after the child's end: nothing is set aside for it again.
    await settled(store, "r1", "c", root_id="p")
    standing = await store.standing("p")
    assert (standing.allotted_nano_usd, standing.reserved_nano_usd) == (0, 0)
    assert standing.spent_nano_usd == DOLLAR + 1000 * INPUT_NANO + 100 * OUTPUT_NANO


async def test_a_childs_raised_cap_needs_what_its_parent_has_left(store: Store) -> None:
    await started(store, "p", budget_nano_usd=10 * DOLLAR)
    await child_of(store, "p", "c", 4)
    await store.move("c", SessionState.RUNNING)
    await end_turn(store, "c")
    turn = await store.turn("c", 1)
    with pytest.raises(RookeryError, match="budget_exceeded"):
        await store.begin_turn("c", turn.model_copy(update={"request_id": "a"}), budget_nano_usd=11 * DOLLAR)
    assert (await store.session("alice", "c")).state is SessionState.IDLE
    await store.begin_turn("c", turn.model_copy(update={"request_id": "b"}), budget_nano_usd=9 * DOLLAR)
    assert await left(store, "p") == 1
    await store.update_session("c", budget_nano_usd=2 * DOLLAR)
    assert await left(store, "p") == 8


async def test_grandchildren_are_paid_for_by_all_above_them_once(store: Store) -> None:
    await started(store, "p", budget_nano_usd=10 * DOLLAR)
    await child_of(store, "p", "c", 4)
    await child_of(store, "c", "g", 3, root="p")
    assert (await left(store, "p"), await left(store, "c"), await left(store, "g")) == (6, 1, 3)
    with pytest.raises(RookeryError, match="budget_exceeded"):
        await child_of(store, "c", "g2", 2, root="p")
    granted(await store.reserve(a_claim("r1", "g", root_id="p")))
    await settled(store, "r1", "g", root_id="p")
    spent = 1000 * INPUT_NANO + 100 * OUTPUT_NANO
    for name, cap in (("p", 10), ("c", 4), ("g", 3)):
        assert (await store.standing(name)).spent_nano_usd == spent, name
        assert (await store.standing(name)).reserved_nano_usd == 0
        assert cap
    assert (await left(store, "p"), await left(store, "c")) == (6, 1)
    await store.move("g", SessionState.ENDED)
    await store.move("c", SessionState.ENDED)
    assert (await store.standing("p")).remaining_nano_usd == 10 * DOLLAR - spent


async def test_a_child_that_ends_before_its_own_children_keeps_what_it_promised_them(store: Store) -> None:
    await started(store, "p", budget_nano_usd=10 * DOLLAR)
    await child_of(store, "p", "c", 6)
    await child_of(store, "c", "g", 4, root="p")
    await store.move("c", SessionState.ENDED)
    assert await left(store, "p") == 6
    granted(await store.reserve(a_claim("r1", "g", root_id="p")))
    await settled(store, "r1", "g", root_id="p")
    assert await left(store, "p") == 6
    with pytest.raises(RookeryError, match="session_ended"):
        await child_of(store, "c", "late", 1, root="p")
    with pytest.raises(RookeryError, match="budget_exceeded"):
        await store.update_session("g", budget_nano_usd=5 * DOLLAR)
    await store.move("g", SessionState.ENDED)
    assert await left(store, "p") == pytest.approx(10 - (1000 * INPUT_NANO + 100 * OUTPUT_NANO) / DOLLAR)
    assert (await store.standing("p")).allotted_nano_usd == 0


async def test_caps_in_tokens_are_set_aside_in_the_same_way(store: Store) -> None:
    await started(store, "p", budget_tokens=100_000)
    await started(store, "c", parent_id="p", root_id="p", budget_tokens=60_000)
    with pytest.raises(RookeryError, match="budget_tokens"):
        await started(store, "d", parent_id="p", root_id="p", budget_tokens=40_001)
    # A child without a cap of its own takes from what is left.
    await started(store, "e", parent_id="p", root_id="p")
    granted(await store.reserve(a_claim("r1", "e", root_id="p", output_tokens=39_000)))
    refused(await store.reserve(a_claim("r2", "e", root_id="p")))
    granted(await store.reserve(a_claim("r3", "c", root_id="p")))
    await settled(store, "r3", "c", root_id="p")
    standing = await store.standing("p")
    assert (standing.spent_tokens, standing.allotted_tokens) == (1100, 58_900)


async def test_a_fork_has_a_cap_of_its_own_but_those_above_still_bind(store: Store) -> None:
    await started(store, "root", budget_nano_usd=DOLLAR)
    await child_of(store, "root", "child", 0.1)
    fork = {"root_id": "root", "parent_id": "child", "forked_from": "cp_1", "budget_nano_usd": 10**12}
    await started(store, "fork", **fork)
    granted(await store.reserve(a_claim("r1", "fork", root_id="root")))
    assert (await store.standing("child")).reserved_tokens == 0
    assert (await store.standing("root")).reserved_tokens == 9000
    assert await left(store, "root") == pytest.approx(0.9 - (1000 * INPUT_NANO + 8000 * OUTPUT_NANO) / DOLLAR)


async def test_input_that_was_underestimated_is_taken_from_what_was_set_aside(store: Store) -> None:
    await started(store, "p", budget_nano_usd=10 * DOLLAR)
    await child_of(store, "p", "c", 4)
    granted(await store.reserve(a_claim("r1", "c", root_id="p")))
    await store.record_request(a_request("r1", "c", root_id="p", usage=Usage(), nano_usd=3 * DOLLAR))
    standing = await store.standing("p")
    assert (standing.spent_nano_usd, standing.allotted_nano_usd) == (3 * DOLLAR, DOLLAR)
    await store.record_request(a_request("r2", "c", root_id="p", usage=Usage(), nano_usd=3 * DOLLAR))
    standing = await store.standing("p")
    assert (standing.spent_nano_usd, standing.allotted_nano_usd) == (6 * DOLLAR, 0)


async def test_a_session_without_a_parent_sets_nothing_aside(store: Store) -> None:
    await ended(store, "old", budget_nano_usd=DOLLAR)
    await idle(store, "s1", budget_nano_usd=DOLLAR)
    await store.update_session("s1", budget_nano_usd=2 * DOLLAR)
    assert (await store.standing("s1")).allotted_nano_usd == 0


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_b01_b02_32_racing_sessions_of_one_tree_never_pass_its_cap(store: Store, data: st.DataObject) -> None:
    """Rows B01 and B02: children are promised, spend, end and make children of their own, all at once.

    Whatever they do, what is spent, reserved and promised is never more than there is, no update is lost, and in the
    end all that was not spent is back.
    """
    name = uuid.uuid4().hex
    cap = data.draw(st.integers(50_000, 200_000)) * OUTPUT_NANO
    shares = data.draw(st.lists(st.integers(1, 12), min_size=32, max_size=32))
    outputs = data.draw(st.lists(st.integers(0, 8000), min_size=32, max_size=32))
    tree = Caps(tree=Cap(nano_usd=cap))
    await started(store, name, budget_nano_usd=cap)

    async def live(number: int) -> None:
        # Every fourth is spawned by the one before it, if that one lives.
        parent = f"{name}-{number - 1}" if number % 4 == 3 else name
        child = f"{name}-{number}"
        try:
            await started(store, child, root_id=name, parent_id=parent, budget_nano_usd=cap * shares[number] // 64)
        except RookeryError as error:
            assert error.code in (ErrorCode.BUDGET_EXCEEDED, ErrorCode.SESSION_NOT_FOUND, ErrorCode.SESSION_ENDED)
            return
        for turn in range(2):
            claim = a_claim(f"{child}-{turn}", child, root_id=name, caps=tree)
            answer = await store.reserve(claim)
            await check()
            if isinstance(answer, Shortage):
                break
            await settled(store, claim.id, child, min(outputs[number], answer.output_tokens), root_id=name)
        if number % 2:
            await store.move(child, SessionState.ENDED)

    async def check() -> None:
        standing = await store.standing(name)
        assert standing.spent_nano_usd + standing.reserved_nano_usd + standing.allotted_nano_usd <= cap
        assert standing.allotted_nano_usd >= 0

    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            for number in range(32):
                group.start_soon(live, number)
    for session in await store.sessions_in({SessionState.STARTING}):
        if session.root_id == name and session.id != name:
            await store.move(session.id, SessionState.ENDED)
    standing = await store.standing(name)
    ledger = await store.tree_cost(name)
    assert (standing.reserved_nano_usd, standing.reserved_tokens, standing.allotted_nano_usd) == (0, 0, 0)
    assert standing.spent_nano_usd == round(ledger.usd * 1e9) <= cap
