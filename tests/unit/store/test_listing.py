"""Lists: newest first, in pages that hold still, only the principal's own, with what each session cost."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta

import pytest
from sqlalchemy import create_engine

from server.errors import RookeryError
from server.models import SessionState
from server.requests import ListRequest
from server.store import Store, open_store
from server.store.listing import _query
from tests.unit.store.records import ALICE, BOB, START, SteppingClock, a_request, a_session, a_turn, started


async def test_pages_lead_through_all_sessions_newest_first(store: Store) -> None:
    # All at one moment: the id then decides, and no page may lose or repeat one.
    for number in range(7):
        await started(store, f"s{number}")
    await started(store, "foreign", principal=BOB)
    seen: list[str] = []
    cursor: str | None = None

    for _ in range(4):
        page = await store.sessions(ALICE, ListRequest(limit=2, cursor=cursor))
        seen += [summary.session_id for summary in page.sessions]
        cursor = page.cursor

    assert seen == [f"s{number}" for number in reversed(range(7))]
    assert cursor is None


async def test_a_session_created_between_two_pages_shifts_nothing(store: Store) -> None:
    for number in range(3):
        await started(store, f"s{number}", created_at=START.replace(minute=number))
    first = await store.sessions(ALICE, ListRequest(limit=2))

    await started(store, "new", created_at=START.replace(minute=30))
    second = await store.sessions(ALICE, ListRequest(limit=2, cursor=first.cursor))

    assert [summary.session_id for summary in first.sessions + second.sessions] == ["s2", "s1", "s0"]


async def test_lists_are_narrowed_by_state_and_by_all_labels(store: Store) -> None:
    await started(store, "s1", labels={"team": "a", "env": "x"})
    await started(store, "s2", labels={"team": "a", "env": "y"})
    await started(store, "s3", labels={"team": "b", "env": "x"})
    await store.move("s1", SessionState.RUNNING)

    async def found(**request: object) -> list[str]:
        page = await store.sessions(ALICE, ListRequest.model_validate(request))
        return [summary.session_id for summary in page.sessions]

    assert await found(labels={"team": "a"}) == ["s2", "s1"]
    assert await found(labels={"team": "a", "env": "x"}) == ["s1"]
    assert await found(labels={"team": "a", "env": "z"}) == []
    assert await found(state="running") == ["s1"]
    assert await found(state="starting", labels={"env": "x"}) == ["s3"]

    await store.update_session("s2", labels={"team": "c"})

    assert await found(labels={"team": "c"}) == ["s2"]
    assert await found(labels={"env": "y"}) == []


async def test_a_summary_shows_the_session_and_its_cost_over_models_and_days(store: Store) -> None:
    await started(store, "p", created_at=START - timedelta(days=1))
    session = a_session("s1", title="t", labels={"a": "b"}, model="m", parent_id="p")
    await store.create_session(session, a_turn("s1"))
    await store.record_request(a_request("q1", "s1", nano_usd=1_000_000_000))
    await store.record_request(a_request("q2", "s1", nano_usd=500_000_000, model="other"))
    await store.record_request(a_request("q3", "s1", nano_usd=None))

    summary, _ = (await store.sessions(ALICE, ListRequest())).sessions

    assert summary.usd == 1.5
    assert (summary.title, summary.labels, summary.model, summary.parent_id) == ("t", {"a": "b"}, "m", "p")
    assert (summary.state, summary.turn, summary.created_at) == (SessionState.STARTING, 1, START)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "ü", "!!!!", "AAAA", base64.urlsafe_b64encode(b"999999999999999999:s1").decode(), "' OR 1=1 --", "=" * 9],
)
async def test_a_cursor_that_no_list_gave_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(RookeryError, match="invalid_argument: cursor"):
        await store.sessions(ALICE, ListRequest(cursor=cursor))


async def test_an_unknown_state_is_refused_with_the_known_ones(store: Store) -> None:
    with pytest.raises(RookeryError, match="invalid_argument: state: must be one of starting, running"):
        await store.sessions(ALICE, ListRequest(state="done"))


PAGES = {
    "newest": ListRequest(),
    "next": ListRequest(cursor=base64.urlsafe_b64encode(b"1000:s1").decode().rstrip("=")),
    "by state": ListRequest(state="idle"),
    "children": ListRequest(parent_id="s1"),
}


@pytest.mark.parametrize("page", PAGES)
async def test_d07_a_page_is_read_off_an_index_however_many_sessions_there_are(sqlite_url: str, page: str) -> None:
    """D07: no list looks at all sessions, of this principal or of others, or sorts them."""
    async with open_store(sqlite_url, clock=SteppingClock()):
        engine = create_engine(sqlite_url)
        query = _query(PAGES[page]).compile(engine)
        with engine.connect() as connection:
            given = {**query.params, "whose": ALICE, "most": 21}
            given = {name: str(value) if isinstance(value, datetime) else value for name, value in given.items()}
            plan = connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN {query}", tuple(given[name] for name in query.positiontup or ())
            )
            steps = [row.detail for row in plan]
        engine.dispose()
    assert any("USING INDEX" in step for step in steps), steps
    assert not [step for step in steps if step.startswith("SCAN") or "TEMP B-TREE" in step], steps
