"""Budgets in the store: reserved at once or not at all, settled once, never passed however many race."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from server.budgets import Cap, Caps, Claim, Reservation, Scope, Shortage
from server.callers import Scope as CallerScope
from server.models import EventKind, TokenRecord, Usage
from server.store import Store, open_store
from server.store.schema import migration_config, upgrade
from server.store.tables import metadata
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


async def test_all_sessions_of_an_api_token_share_its_cap(store: Store) -> None:
    cap = 1000 * INPUT_NANO + 8000 * OUTPUT_NANO
    scopes = (CallerScope.RUN,)
    for name, budget in (("tok_1", cap), ("tok_2", None)):
        made = TokenRecord(
            id=name, name=name, principal=ALICE, digest=name, scopes=scopes, budget_nano_usd=budget, created_at=START
        )
        await store.create_token(made)
    for session_id, token_id in (("s1", "tok_1"), ("s2", "tok_1"), ("s3", "tok_2"), ("s4", None)):
        await started(store, session_id, token_id=token_id)
    granted(await store.reserve(a_claim("r1", "s1")))
    assert refused(await store.reserve(a_claim("r2", "s2"))).scope is Scope.TOKEN
    granted(await store.reserve(a_claim("r3", "s3")))
    granted(await store.reserve(a_claim("r4", "s4")))
    await settled(store, "r1", "s1")
    assert granted(await store.reserve(a_claim("r5", "s2"))).output_tokens < 8000


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


async def test_a_cap_in_tokens_is_warned_of_too(store: Store) -> None:
    await started(store, "s1", budget_tokens=10_000)
    await store.record_request(a_request("r1", "s1", usage=Usage(cache_read_tokens=8100), nano_usd=None))
    [warning] = await store.events("s1", kinds=[EventKind.BUDGET])
    expected = {"scope": "session", "percent": 80, "spent_tokens": 8100, "budget_tokens": 10_000}
    assert warning.data == expected


@pytest.mark.parametrize("scope", [Scope.TREE, Scope.PRINCIPAL, Scope.DAY])
async def test_the_operators_caps_are_warned_of_once_and_again_when_they_were_raised(
    store: Store, scope: Scope
) -> None:
    await started(store, "s1")
    spent = 1100

    async def warned(number: int, cap: int) -> list[int]:
        caps = Caps.model_validate({scope.value: Cap(tokens=cap)})
        await store.reserve(a_claim(f"r{number}", "s1", caps=caps, least_output_tokens=1, output_tokens=1))
        await settled(store, f"r{number}", "s1")
        events = await store.events("s1", kinds=[EventKind.BUDGET])
        assert all(event.data["scope"] == scope.value for event in events)
        return [event.data["percent"] for event in events]

    assert await warned(1, 2 * spent) == []
    assert await warned(2, 2 * spent) == [50]
    assert await warned(3, 40 * spent) == [50]
    assert await warned(4, 4 * spent) == [50, 50]
    assert await warned(5, 4 * spent) == [50, 50, 95]


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
    from alembic import command

    sums = "nano_usd, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, requests, failures"
    day, figures = f"{START.date()}", "777, 1000, 99, 0, 0, 1, 0, 0"

    def older(connection: Any) -> None:
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
        command.upgrade(migration_config(connection), "0001")
        for table, key in (("cost_totals", "principal, session_id, root_id"), ("principal_totals", "principal")):
            named = f"'{ALICE}', 's1', 's1'" if table == "cost_totals" else f"'{ALICE}'"
            connection.exec_driver_sql(
                f"INSERT INTO {table} ({key}, model, day, {sums}, unpriced_requests) "
                f"VALUES ({named}, 'm', '{day}', {figures})"
            )
        upgrade(connection, "0001")

    async with open_store(url) as store:
        await store._database.migrate(older)  # type: ignore[attr-defined]  # of the two databases, not of the protocol
    async with open_store(url) as store:
        standing = await store.standing("s1")
        assert (standing.spent_nano_usd, standing.spent_tokens) == (777, 1099)
        await started(store, "s1", budget_nano_usd=10**12)
        least = 1000 + 2048
        refused(await store.reserve(a_claim("r2", "s1", caps=Caps(day=Cap(tokens=least + 1098)))))
        granted(await store.reserve(a_claim("r3", "s1", caps=Caps(day=Cap(tokens=least + 1099)))))
