"""The ledger: every request once, sums that are exactly those of its entries, whatever is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import RookeryError
from server.models import NANO_USD, Cost, LedgerEntry, StopReason, Usage
from server.requests import CostRequest
from server.store import Store, open_store
from server.store.costs import MAX_GROUPS, OTHERS, UNLABELLED
from tests.unit.store.records import ALICE, BOB, START, a_request, a_turn, idle, started


async def test_a_request_is_counted_once_however_often_it_is_written(url: str) -> None:
    async with open_store(url) as one, open_store(url) as two:
        async with anyio.create_task_group() as tasks:
            for store in (one, two) * 4:
                tasks.start_soon(store.record_request, a_request("q1", "s1"))

        expected = Cost(usd=0.0015, input_tokens=100, output_tokens=20, cache_read_tokens=300, requests=1)
        assert await one.cost("s1") == await two.turn_cost("s1", 1) == await two.tree_cost("s1") == expected


async def test_a_session_without_requests_costs_nothing(store: Store) -> None:
    assert await store.cost("s1") == await store.turn_cost("s1", 1) == await store.tree_cost("s1") == Cost()


async def test_failed_and_unpriced_requests_are_counted_apart(store: Store) -> None:
    await store.record_request(a_request("q1", "s1", nano_usd=None))
    await store.record_request(a_request("q2", "s1", status=429, error="rate_limit_error", nano_usd=0))
    await store.record_request(a_request("q3", "s1", status=0, nano_usd=0))
    await store.record_request(a_request("q4", "s1", error="overloaded_error", nano_usd=0))
    await store.record_request(a_request("q5", "s1", complete=False, nano_usd=0))

    cost = await store.cost("s1")

    assert (cost.requests, cost.failures, cost.unpriced_requests, cost.usd) == (5, 3, 1, 0)
    assert await store.turn_cost("s1", 1) == cost
    assert "1 requests used a model without a known price" in (await store.cost_report(ALICE, CostRequest())).note


async def test_a_turn_costs_what_its_own_requests_cost(store: Store) -> None:
    await store.record_request(a_request("q1", "s1", turn=1, nano_usd=1 * NANO_USD))
    await store.record_request(a_request("q2", "s1", turn=2, nano_usd=2 * NANO_USD))
    await store.record_request(a_request("q3", "s2", turn=2, nano_usd=4 * NANO_USD))

    assert (await store.turn_cost("s1", 2)).usd == 2
    assert (await store.turn_cost("s1", 3)).requests == 0


async def test_a_report_of_a_session_knows_its_budget_and_the_sdks_own_figure(store: Store) -> None:
    await idle(store, "s1", budget_nano_usd=2 * NANO_USD)
    await store.begin_turn("s1", a_turn("s1"))
    await store.update_turn("s1", 1, sdk_cost_usd=0.25)
    await store.update_turn("s1", 2, sdk_cost_usd=0.75, stop_reason=StopReason.END_TURN)
    await store.record_request(a_request("q1", "s1", nano_usd=NANO_USD // 2))
    await store.record_request(a_request("q2", "s2", nano_usd=NANO_USD))

    report = await store.cost_report(ALICE, CostRequest(session_id="s1"))

    assert (report.scope, report.session_id, report.total.usd) == ("session", "s1", 0.5)
    assert (report.budget_usd, report.budget_remaining_usd, report.sdk_usd) == (2, 1.5, 0.75)
    assert report.cache_hit_rate == 0.75
    assert report.groups == ()

    await store.record_request(a_request("q3", "s1", nano_usd=9 * NANO_USD))
    assert (await store.cost_report(ALICE, CostRequest(session_id="s1"))).budget_remaining_usd == 0


async def test_reports_show_a_principals_own_costs_only(store: Store) -> None:
    await started(store, "s1", principal=BOB)
    await store.record_request(a_request("q1", "s1", principal=BOB))

    report = await store.cost_report(ALICE, CostRequest(group_by="session"))

    assert (report.scope, report.total, report.groups, report.cache_hit_rate) == ("principal", Cost(), (), None)
    for tree in (False, True):
        with pytest.raises(RookeryError, match="session_not_found"):
            await store.cost_report(ALICE, CostRequest(session_id="s1", tree=tree))


async def test_a_tree_is_a_session_with_all_that_descends_from_it(store: Store) -> None:
    await started(store, "root")
    await started(store, "child", root_id="root", parent_id="root")
    await started(store, "grandchild", root_id="root", parent_id="child")
    await started(store, "sibling", root_id="root", parent_id="root")
    for number, name in enumerate(["root", "child", "grandchild", "sibling"]):
        await store.record_request(a_request(name, name, root_id="root", nano_usd=10**number * NANO_USD))

    async def tree(session_id: str) -> float:
        return (await store.cost_report(ALICE, CostRequest(session_id=session_id, tree=True))).total.usd

    assert (await tree("root"), await tree("child"), await tree("sibling")) == (1111, 110, 1000)
    assert (await store.tree_cost("root")).usd == 1111


async def test_costs_are_grouped_by_session_model_label_and_day(store: Store) -> None:
    await started(store, "s1", labels={"team": "a", "env": "x"})
    await started(store, "s2", labels={"team": "a"})
    late = datetime(2026, 11, 24, 1, 0, tzinfo=timezone(timedelta(hours=9)))
    await store.record_request(a_request("q1", "s1", model="m1", nano_usd=1 * NANO_USD))
    await store.record_request(a_request("q2", "s2", model="m2", nano_usd=2 * NANO_USD, started_at=late))
    await store.record_request(
        a_request("q3", "s3", model="m2", nano_usd=4 * NANO_USD, started_at=START + timedelta(days=1))
    )

    async def groups(group_by: str) -> dict[str, float]:
        report = await store.cost_report(ALICE, CostRequest.model_validate({"group_by": group_by}))
        assert report.total.usd == 7
        return {group.key: group.cost.usd for group in report.groups}

    assert await groups("session") == {"s3": 4, "s2": 2, "s1": 1}
    assert await groups("model") == {"m2": 6, "m1": 1}
    assert await groups("label") == {UNLABELLED: 4, "team=a": 3, "env=x": 1}
    # 01:00 in Tokyo is still the day before in UTC.
    assert await groups("day") == {"2026-11-24": 4, "2026-11-23": 3}
    report = await store.cost_report(ALICE, CostRequest(session_id="s1", group_by="label"))
    assert {group.key for group in report.groups} == {"team=a", "env=x"}
    assert "several labels" in report.note


async def test_more_groups_than_fit_are_summed_up_so_that_groups_add_up(store: Store) -> None:
    for number in range(MAX_GROUPS + 5):
        await store.record_request(a_request(f"q{number}", f"s{number:04}", nano_usd=number * NANO_USD))

    report = await store.cost_report(ALICE, CostRequest(group_by="session"))

    assert len(report.groups) == MAX_GROUPS + 1
    assert report.groups[0].key == f"s{MAX_GROUPS + 4:04}"
    assert (report.groups[-1].key, report.groups[-1].cost.usd) == (OTHERS, 0 + 1 + 2 + 3 + 4)
    assert sum(group.cost.requests for group in report.groups) == report.total.requests == MAX_GROUPS + 5


_tokens = st.integers(min_value=0, max_value=10**9)
_entries = st.lists(
    st.builds(
        lambda number, session, model, day, status, price, usage: a_request(
            f"q{number}",
            session,
            root_id="s1",
            model=model,
            started_at=datetime(2026, 11, day, 23, 59, tzinfo=UTC),
            status=status,
            nano_usd=price,
            usage=Usage(input_tokens=usage[0], output_tokens=usage[1], cache_read_tokens=usage[2]),
        ),
        st.integers(0, 12),
        st.sampled_from(["s1", "s2", "s3"]),
        st.sampled_from(["m1", "m2"]),
        st.integers(1, 3),
        st.sampled_from([0, 200, 529]),
        st.none() | st.integers(0, 10**15),
        st.tuples(_tokens, _tokens, _tokens),
    ),
    max_size=20,
)


@settings(max_examples=20, deadline=None)
@given(_entries)
def test_every_sum_is_that_of_the_entries(entries: list[LedgerEntry]) -> None:
    written: dict[str, LedgerEntry] = {}
    for entry in entries:
        written.setdefault(entry.id, entry)

    async def check() -> None:
        with TemporaryDirectory() as directory:
            async with open_store(f"sqlite:///{Path(directory) / 'rookery.db'}") as store:
                for entry in entries:
                    await store.record_request(entry)
                total = await store.tree_cost("s1")
                report = await store.cost_report(ALICE, CostRequest())
                assert total == report.total == _sum(written.values())
                for session in ("s1", "s2", "s3"):
                    own = [entry for entry in written.values() if entry.session_id == session]
                    assert await store.cost(session) == _sum(own)
                by_day = await store.cost_report(ALICE, CostRequest(group_by="day"))
                days = Counter(entry.started_at.date().isoformat() for entry in written.values())
                assert {group.key: group.cost.requests for group in by_day.groups} == days

    asyncio.run(check())


def _sum(entries: Iterable[LedgerEntry]) -> Cost:
    chosen = list(entries)
    return Cost(
        usd=sum(entry.nano_usd or 0 for entry in chosen) / NANO_USD,
        input_tokens=sum(entry.usage.input_tokens for entry in chosen),
        output_tokens=sum(entry.usage.output_tokens for entry in chosen),
        cache_read_tokens=sum(entry.usage.cache_read_tokens for entry in chosen),
        requests=len(chosen),
        failures=sum(entry.status != 200 for entry in chosen),
        unpriced_requests=sum(entry.nano_usd is None for entry in chosen),
    )
