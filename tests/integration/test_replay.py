"""The ledger against an API that keeps books of its own: equal to the token, whatever becomes of sessions and streams.

Beside it, why nothing else will do: the results of the agent, added up, come to another sum.
"""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import select

from server.models import Usage
from server.store import open_store
from server.store.tables import ledger, turns
from tests.house import ME, bash, go_on, open_house, run, settings_for, settled, spawn, until
from tests.paid_api import PaidApi, Refused, paid_api, settings_of, times

SONNET = "claude-sonnet-4-5"
KINDS = tuple(name for name in Usage.model_fields if name != "server_tool_requests")


async def entries(home: Path) -> list[dict[str, Any]]:
    """The ledger, line by line."""
    async with open_store(settings_for(home).store_url) as store:
        rows = await store._database.read(lambda connection: connection.execute(select(ledger)).all())
    return [dict(row._mapping) for row in rows]


async def naive_sum(home: Path) -> float:
    """What the results of all turns come to, added up."""
    async with open_store(settings_for(home).store_url) as store:
        query = select(turns.c.sdk_cost_usd)
        figures = await store._database.read(lambda connection: connection.execute(query).scalars().all())
    return sum(figure or 0.0 for figure in figures)


def check(rows: list[dict[str, Any]], api: PaidApi, lost: int = 0) -> None:
    """Each request of the API is in the ledger once, whole answers to the token, broken ones on the high side."""
    whole = [row for row in rows if row["complete"]]
    broken = [row for row in rows if not row["complete"]]
    assert len(rows) == len({row["id"] for row in rows}) == len(api.requests)
    assert len(whole) == len(api.used)
    assert not any(row["estimated"] for row in whole)
    used = Usage(**{kind: sum(row[kind] for row in whole) for kind in KINDS})
    assert used == api.total
    refused = [row for row in broken if row["status"] >= 400]
    assert len(refused) == api.refused
    assert all(row["nano_usd"] == 0 for row in refused)
    cut = [row for row in broken if row["status"] < 400]
    assert len(cut) == api.cut
    assert all(row["estimated"] and row["nano_usd"] > 0 and row["output_tokens"] > 0 for row in cut)
    assert len([row for row in cut if row["error"] == "server_lost"]) == lost


async def test_the_ledger_equals_what_the_api_used_through_resumes_forks_retries_and_cut_streams(
    tmp_path: Path,
) -> None:
    async with paid_api(times(1, Refused(529, headers={}))) as api:
        async with open_house(tmp_path, **settings_of(api)) as registry:
            steps: list[dict[str, Any]] = [
                bash("echo hi"),
                {"text": "half a"},
                {"cut": True, "times": 1},
                {"text": "one"},
            ]
            outcome = await run(registry, steps, model=SONNET)
            assert outcome.error is None
            await go_on(registry, outcome.session_id, [{"text": "two"}])
            background = [bash("echo later", run_in_background=True), {"text": "three"}, {"text": "woken"}]
            await go_on(registry, outcome.session_id, background)
            woken = await until(registry, outcome.session_id, lambda one: one.turn >= 3 and not one.state.is_busy)
        async with open_house(tmp_path, **settings_of(api)) as registry:
            # Nothing begins by itself any more: the agent's own turn is over, whenever it woke from its task.
            before = await registry.outcome(ME, outcome.session_id)
            outcome = await go_on(registry, outcome.session_id, [{"text": "resumed"}])
            assert outcome.turn == before.turn + 1
            assert before.turn >= woken.turn
            forks = await registry.fork(ME, outcome.session_id, prompt="hello", checkpoint_id=None, count=2)
            for fork in forks:
                assert (await settled(registry, fork)).error is None
        assert api.cut == 1
    rows = await entries(tmp_path)
    check(rows, api)
    total = sum(row["nano_usd"] for row in rows) / 1e9
    assert {row["model"] for row in rows} == {SONNET}
    # Each result counts the whole conversation again, a fork's with what its original had cost.
    assert await naive_sum(tmp_path) > 1.5 * total


def _work_until_killed(home: str, settings: dict[str, Any]) -> None:
    async def main() -> None:
        async with open_house(Path(home), **settings) as registry:
            await run(registry, [{"text": "before"}], model=SONNET, request_id="doomed")
            outcome = await registry.outcome(ME, await spawn(registry, "again", request_id="doomed"))
            await go_on(registry, outcome.session_id, [{"delay_s": 600}, {"text": "never said"}])

    anyio.run(main)


@pytest.mark.slow
async def test_b04_a_server_killed_in_the_midst_of_a_request_is_charged_for_all_that_it_had_reserved(
    tmp_path: Path,
) -> None:
    """Row B04: crash between reserve and settle; found by the next server, charged once, and the session goes on."""
    async with paid_api() as api:
        doomed = multiprocessing.get_context("spawn").Process(
            target=_work_until_killed, args=(str(tmp_path), settings_of(api))
        )
        doomed.start()
        with anyio.fail_after(120):
            while len(api.requests) < 2:
                await anyio.sleep(0.05)
        assert doomed.pid is not None
        doomed.kill()
        await anyio.to_thread.run_sync(doomed.join)
        assert doomed.exitcode == -signal.SIGKILL
        async with open_house(tmp_path, **settings_of(api)) as registry:
            session_id = await spawn(registry, "again", request_id="doomed")
            outcome = await go_on(registry, session_id, [{"text": "back"}])
            assert outcome.text == "back"
        with anyio.fail_after(60):
            while not api.cut:
                await anyio.sleep(0.05)
        check(await entries(tmp_path), api, lost=1)
