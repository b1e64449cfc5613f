"""Budgets in the store: reserved at once or not at all, settled once, never passed however many race."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.budgets import Cap, Caps, Claim, Reservation, Scope, Shortage
from server.models import EventKind, Usage
from server.store import Store, open_store
from server.store.schema import upgrade
from tests.unit.store.records import ALICE, START, a_request, started

INPUT_NANO = 1_000
OUTPUT_NANO = 15_000


def a_claim(claim_id: str, session_id: str, **fields: Any) -> Claim:
    """A thousand input tokens at 1,000 nano-dollars each; output at 15,000."""
    values: dict[str, Any] = {
        "id": claim_id,
        "owner": "server_1",
        "session_id": session_id,
        "root_id": session_id,
        "principal": ALICE,
        "turn": 1,
        "model": "claude-sonnet-5",
        "at": START,
        "input_tokens": 1000,
        "output_tokens": 8000,
        "least_output_tokens": 2048,
        "input_nano_usd": 1000 * INPUT_NANO,
        "output_nano_usd": OUTPUT_NANO * 1_000_000,
    }
    return Claim.model_validate(values | fields)


async def settled(store: Store, claim_id: str, session_id: str, output: int = 100, **fields: Any) -> None:
    usage = Usage(input_tokens=1000, output_tokens=output)
    nano = 1000 * INPUT_NANO + output * OUTPUT_NANO
    await store.record_request(a_request(claim_id, session_id, usage=usage, nano_usd=nano, **fields))


def granted(answer: Reservation | Shortage) -> Reservation:
    assert isinstance(answer, Reservation), answer
    return answer


def refused(answer: Reservation | Shortage) -> Shortage:
    assert isinstance(answer, Shortage), answer
    return answer


async def test_what_is_reserved_is_taken_back_when_the_request_is_settled(store: Store) -> None:
    await started(store, "s1", budget_nano_usd=1_000_000_000)
    reservation = granted(await store.reserve(a_claim("r1", "s1")))
    assert reservation.output_tokens == 8000
    assert reservation.nano_usd == 1000 * INPUT_NANO + 8000 * OUTPUT_NANO
    standing = await store.standing("s1")
    assert (standing.reserved_nano_usd, standing.spent_nano_usd) == (reservation.nano_usd, 0)
    await settled(store, "r1", "s1")
    await settled(store, "r1", "s1")
    standing = await store.standing("s1")
    assert (standing.reserved_nano_usd, standing.reserved_tokens) == (0, 0)
    assert (standing.spent_nano_usd, standing.spent_tokens) == (1000 * INPUT_NANO + 100 * OUTPUT_NANO, 1100)
    assert standing.remaining_nano_usd == 1_000_000_000 - standing.spent_nano_usd


async def test_when_not_all_can_be_paid_for_less_output_is_granted(store: Store) -> None:
    await started(store, "s1", budget_nano_usd=1000 * INPUT_NANO + 3000 * OUTPUT_NANO)
    assert granted(await store.reserve(a_claim("r1", "s1"))).output_tokens == 3000


async def test_with_less_than_is_needed_nothing_is_reserved(store: Store) -> None:
    await started(store, "s1", budget_nano_usd=1000 * INPUT_NANO + 2047 * OUTPUT_NANO)
    shortage = refused(await store.reserve(a_claim("r1", "s1")))
    assert (shortage.scope, shortage.unit) == (Scope.SESSION, "usd")
    assert "session" in shortage.describe()
    assert (await store.standing("s1")).reserved_nano_usd == 0


async def test_a_raised_cap_opens_the_way_again(store: Store) -> None:
    await started(store, "s1", budget_nano_usd=1)
    refused(await store.reserve(a_claim("r1", "s1")))
    await store.update_session("s1", budget_nano_usd=1_000_000_000)
    granted(await store.reserve(a_claim("r2", "s1")))


@pytest.mark.parametrize("scope", [Scope.TREE, Scope.PRINCIPAL, Scope.DAY, Scope.SESSION])
@pytest.mark.parametrize("unit", ["usd", "tokens"])
async def test_every_kind_of_cap_binds(store: Store, scope: Scope, unit: str) -> None:
    await started(store, "s1")
    await started(store, "s2", root_id="s1")
    nano, tokens = 1000 * INPUT_NANO + 3000 * OUTPUT_NANO, 4000
    cap = Cap(nano_usd=nano) if unit == "usd" else Cap(tokens=tokens)
    if (scope, unit) == (Scope.SESSION, "usd"):
        await store.update_session("s1", budget_nano_usd=nano)
        caps = Caps()
    else:
        caps = Caps.model_validate({scope.value: cap})
    assert granted(await store.reserve(a_claim("r1", "s1", caps=caps))).output_tokens == 3000
    other = await store.reserve(a_claim("r2", "s2", root_id="s1", caps=caps))
    if scope is Scope.SESSION:
        granted(other)
    else:
        assert (refused(other).scope, refused(other).unit) == (scope, unit)


async def test_a_day_begins_anew(store: Store) -> None:
    await started(store, "s1")
    caps = Caps(day=Cap(tokens=10_000))
    granted(await store.reserve(a_claim("r1", "s1", caps=caps)))
    refused(await store.reserve(a_claim("r2", "s1", caps=caps)))
    granted(await store.reserve(a_claim("r3", "s1", caps=caps, at=START + timedelta(days=1))))


async def test_a_spawned_child_spends_from_its_parent(store: Store) -> None:
    await started(store, "parent", budget_nano_usd=1000 * INPUT_NANO + 8000 * OUTPUT_NANO)
    await started(store, "child", root_id="parent", parent_id="parent", budget_nano_usd=10**12)
    await started(store, "grandchild", root_id="parent", parent_id="child", budget_nano_usd=10**12)
    granted(await store.reserve(a_claim("r1", "grandchild", root_id="parent")))
    for session_id in ("parent", "child", "grandchild"):
        assert (await store.standing(session_id)).reserved_tokens == 9000
        refused(await store.reserve(a_claim(f"r-{session_id}", session_id, root_id="parent")))
    await settled(store, "r1", "grandchild", root_id="parent")
    assert (await store.standing("parent")).spent_tokens == 1100


async def test_a_fork_has_a_cap_of_its_own_but_its_ancestors_still_bind(store: Store) -> None:
    await started(store, "root", budget_nano_usd=10**12)
    await started(store, "child", root_id="root", parent_id="root", budget_nano_usd=1)
    fork = {"root_id": "root", "parent_id": "child", "forked_from": "cp_1", "budget_nano_usd": 10**12}
    await started(store, "fork", **fork)
    granted(await store.reserve(a_claim("r1", "fork", root_id="root")))
    assert (await store.standing("child")).reserved_tokens == 0
    assert (await store.standing("root")).reserved_tokens == 9000


async def test_a_request_that_nothing_was_reserved_for_counts_all_the_same(store: Store) -> None:
    await started(store, "parent")
    await started(store, "child", root_id="parent", parent_id="parent")
    await settled(store, "r1", "child", root_id="parent")
    assert (await store.standing("parent")).spent_tokens == 1100


async def test_g05_without_a_price_a_cap_in_dollars_refuses_and_one_in_tokens_does_not(store: Store) -> None:
    """Row G05: unknown price."""
    await started(store, "dollars", budget_nano_usd=10**12)
    await started(store, "tokens")
    unknown = {"input_nano_usd": 0, "output_nano_usd": None, "caps": Caps(session=Cap(tokens=100_000))}
    shortage = refused(await store.reserve(a_claim("r1", "dollars", **unknown)))
    assert shortage.unit == "price"
    granted(await store.reserve(a_claim("r2", "tokens", **unknown)))


async def test_warnings_stand_in_the_log_once_for_each_level(store: Store) -> None:
    await started(store, "parent", budget_nano_usd=100 * OUTPUT_NANO)
    await started(store, "child", root_id="parent", parent_id="parent")
    for number, output in enumerate([40, 12, 20, 30]):
        usage = Usage(output_tokens=output)
        entry = a_request(f"r{number}", "child", root_id="parent", usage=usage, nano_usd=output * OUTPUT_NANO)
        await store.record_request(entry)
        await store.record_request(entry)
    warnings = await store.events("parent", kinds=[EventKind.BUDGET])
    assert [event.data["percent"] for event in warnings] == [50, 95]
    assert warnings[0].data["spent_usd"] == pytest.approx(52 * OUTPUT_NANO / 1e9)
    assert not await store.events("child", kinds=[EventKind.BUDGET])


async def test_b04_what_a_dead_server_had_reserved_is_charged_in_full(store: Store) -> None:
    """Row B04: crash between reserve and settle."""
    await started(store, "s1", budget_nano_usd=10**12)
    reservation = granted(await store.reserve(a_claim("r1", "s1", owner="dead")))
    granted(await store.reserve(a_claim("r2", "s1", owner="living")))
    for server_id in ("dead", "living"):
        await store.register_server(server_id)
    assert await store.charge_lost([]) == 0
    assert await store.charge_lost(["dead"]) == 1
    assert await store.charge_lost(["dead"]) == 0
    standing = await store.standing("s1")
    assert standing.spent_nano_usd == reservation.nano_usd
    assert standing.reserved_tokens == 9000
    assert (await store.cost("s1")).usd == pytest.approx(reservation.nano_usd / 1e9)
    await store.remove_server("living")
    assert await store.charge_lost([]) == 1
    # The dead come back: what they write about the same request changes nothing any more.
    await settled(store, "r1", "s1")
    assert (await store.standing("s1")).spent_nano_usd == 2 * reservation.nano_usd


async def test_budgets_that_came_before_accounts_start_from_what_was_spent(url: str) -> None:
    async with open_store(url) as store:
        await started(store, "s1", budget_nano_usd=10**12)
        await settled(store, "r1", "s1")

        def older(connection: Any) -> None:
            connection.exec_driver_sql("DROP TABLE budget_accounts")
            connection.exec_driver_sql("DROP TABLE reservations")
            connection.exec_driver_sql("DROP TABLE decisions")
            connection.exec_driver_sql("ALTER TABLE sessions DROP COLUMN parent_policies")
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
            upgrade(connection, "0001")

        before = await store.standing("s1")
        await store._database.migrate(older)  # type: ignore[attr-defined]  # of the two databases, not of the protocol
        assert await store.standing("s1") == before
        least = 1000 + 2048
        refused(await store.reserve(a_claim("r2", "s1", caps=Caps(day=Cap(tokens=least + 1099)))))
        granted(await store.reserve(a_claim("r3", "s1", caps=Caps(day=Cap(tokens=least + 1100)))))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_b01_b02_32_racing_sessions_of_one_tree_never_pass_its_cap(store: Store, data: st.DataObject) -> None:
    """Rows B01 and B02: one budget, many at once; no lost update, no overshoot."""
    name = data.draw(st.uuids()).hex
    cap = data.draw(st.integers(50_000, 200_000)) * OUTPUT_NANO
    outputs = data.draw(st.lists(st.integers(0, 8000), min_size=32, max_size=32))
    await started(store, name, budget_nano_usd=cap)
    children = [f"{name}-{number}" for number in range(32)]
    for child in children:
        await started(store, child, root_id=name, parent_id=name, budget_nano_usd=10**12)
    refusals = 0

    async def spend(child: str, output: int) -> None:
        nonlocal refusals
        for turn in range(2):
            claim = a_claim(f"{child}-{turn}", child, root_id=name)
            answer = await store.reserve(claim)
            standing = await store.standing(name)
            assert standing.spent_nano_usd + standing.reserved_nano_usd <= cap
            if isinstance(answer, Shortage):
                refusals += 1
                return
            await anyio.sleep(0)
            await settled(store, claim.id, child, min(output, answer.output_tokens), root_id=name)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for child, output in zip(children, outputs, strict=True):
                group.start_soon(spend, child, output)
    standing = await store.standing(name)
    ledger = await store.tree_cost(name)
    assert standing.reserved_nano_usd == standing.reserved_tokens == 0
    assert standing.spent_nano_usd == round(ledger.usd * 1e9)
    assert standing.spent_nano_usd <= cap
