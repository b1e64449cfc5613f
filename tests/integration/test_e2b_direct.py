"""Model requests that go from E2B straight to the model API (``ROOKERY_E2B_TRAFFIC=direct``); E2B puts the key in.

The double opens TLS and puts the header in as E2B does. What is weaker than over the gateway is held here, too: it is
what the documentation says, and no more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest

from server.direct import PRICE_SOURCE
from server.errors import ErrorCode
from server.models import EventKind, StopReason
from server.registry import Registry
from server.store.tables import ledger
from tests.e2b_cloud.handle import E2BCloud
from tests.e2b_cloud.live import is_live
from tests.house import ME, bash, go_on, open_house, run, say, seen, settled, spawn
from tests.integration.test_secrets import CANARY, Witness, paid_model
from tests.looking import holding, work_without
from tests.providers import settings_on

pytestmark = [
    pytest.mark.e2b,
    pytest.mark.slow,
    pytest.mark.skipif(is_live(), reason="the model API must be a stand-in"),
]

HOST: Final = "api.anthropic.com"
SECRET: Final = "model-key"
MODEL: Final = "claude-sonnet-4-5"


@asynccontextmanager
async def direct_house(
    home: Path, cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Registry, Witness]]:
    """A house without a key, whose agents in E2B do without the gateway; and the model API that they reach."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    await cloud.sdk().AsyncSecret.create(SECRET, CANARY)
    traffic = {"upstream": "anthropic", "e2b_traffic": "direct", "e2b_secret": SECRET, "model": MODEL}
    async with paid_model() as (url, witness):
        cloud.upstream(HOST, url)
        async with open_house(home, **settings_on(cloud), **traffic) as registry:
            yield registry, witness


async def ledger_of(registry: Registry, session_id: str) -> list[dict[str, Any]]:
    """A session's lines of the ledger, oldest first."""
    query = ledger.select().where(ledger.c.session_id == session_id).order_by(ledger.c.started_at)
    return await registry._services.store._database.read(
        lambda connection: [dict(row) for row in connection.execute(query).mappings()]
    )


def using(**usage: int) -> dict[str, Any]:
    """A step that gives the figures of the message that follows."""
    return {"usage": {"input_tokens": 1000, "output_tokens": 200, **usage}}


async def test_x01_the_key_of_direct_traffic_pays_and_is_nowhere_in_the_sandbox_or_on_the_server(
    tmp_path: Path, e2b_cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X01: looked for with root's eyes while the agent is at work, and in the server's own home."""
    steps = [bash("env; touch started; until [ -e go ]; do sleep 0.05; done"), {"reply_with": "last_tool_result"}]
    needles = [CANARY.encode(), e2b_cloud.api_key.encode()]
    home = tmp_path / "home"
    async with direct_house(home, e2b_cloud, monkeypatch) as (registry, witness):
        session_id = await spawn(registry, steps)
        await seen(registry, session_id, EventKind.TOOL_CALL)
        found = await work_without(needles, e2b_cloud)
        assert (found["network"]["allowOut"], found["network"]["denyOut"]) == ([HOST], ["0.0.0.0/0"])
        (Path(found["tree"]) / "workspace" / "go").touch()
        outcome = await settled(registry, session_id)
        assert outcome.error is None
        assert CANARY not in outcome.model_dump_json()
        await registry.end(ME, session_id, delete=True)
    assert {headers.get("x-api-key") for headers in witness.headers} == {CANARY}
    assert (await anyio.to_thread.run_sync(holding, home, [CANARY.encode()])) == []


async def test_costs_of_direct_traffic_are_booked_turn_by_turn_as_the_agent_tells_them_and_marked_so(
    tmp_path: Path, e2b_cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with direct_house(tmp_path, e2b_cloud, monkeypatch) as (registry, witness):
        first = await run(
            registry, [using(), bash("true"), using(cache_read_input_tokens=700), {"text": "one"}], budget_usd=5
        )
        assert first.error is None
        second = await go_on(registry, first.session_id, [using(output_tokens=50), {"text": "two"}])
        assert second.error is None
        # In another life of the agent: what it tells is of the turn, not of all that was.
        await registry.rewind(ME, first.session_id, str(second.checkpoint_id), dry_run=False, conversation=False)
        third = await go_on(registry, first.session_id, [using(output_tokens=70), {"text": "three"}])
        assert third.error is None
        lines = await ledger_of(registry, first.session_id)
        told = [(line["turn"], line["input_tokens"], line["output_tokens"]) for line in lines]
        assert told == [(1, 2000, 400), (2, 1000, 50), (3, 1000, 70)]
        assert [line["cache_read_tokens"] for line in lines] == [700, 0, 0]
        assert {line["model"] for line in lines} == {MODEL}
        assert all(line["estimated"] and PRICE_SOURCE in line["price_source"] for line in lines)
        prices = [line["nano_usd"] for line in lines]
        assert all(prices)
        assert third.cost.usd == pytest.approx(sum(prices) / 1e9)
        assert third.budget_remaining_usd == pytest.approx(5 - sum(prices) / 1e9)
        await registry.end(ME, first.session_id, delete=True)
    assert witness.paths.count("/v1/messages") == 4, "nothing went over the gateway, and nothing was asked twice"


async def test_a_spent_budget_stops_direct_traffic_at_the_next_turns_border_and_a_higher_one_lets_it_go_on(
    tmp_path: Path, e2b_cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with direct_house(tmp_path, e2b_cloud, monkeypatch) as (registry, witness):
        # Weaker than the gateway: the turn that passes the cap is not stopped.
        first = await run(registry, [using(output_tokens=90_000), {"text": "dear"}], budget_usd=0.5)
        assert (first.stop_reason, first.text) == (StopReason.END_TURN, "dear")
        assert first.cost.usd > 0.5
        asked = witness.paths.count("/v1/messages")
        second = await go_on(registry, first.session_id, [{"text": "must not be said"}])
        assert second.stop_reason is StopReason.BUDGET_EXCEEDED
        assert second.error is not None
        assert second.error.code is ErrorCode.BUDGET_EXCEEDED
        assert witness.paths.count("/v1/messages") == asked, "no request was made"
        await say(registry, first.session_id, [using(), {"text": "again"}], budget_usd=10)
        third = await settled(registry, first.session_id)
        assert (third.stop_reason, third.text) == (StopReason.END_TURN, "again")
        await registry.end(ME, first.session_id, delete=True)


async def test_with_direct_traffic_the_agent_reaches_all_that_the_key_is_good_for_and_nobody_counts_it(
    tmp_path: Path, e2b_cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weaker than the gateway, which would refuse it or count it; no other host is reached all the same."""
    asking = "for host in $HOSTS; do curl -s -o /dev/null -w '%{http_code} ' https://$host/v1/files; done; true"
    steps = [bash(f"export HOSTS='{HOST} example.com'; {asking}"), {"reply_with": "last_tool_result"}]
    async with direct_house(tmp_path, e2b_cloud, monkeypatch) as (registry, witness):
        outcome = await run(registry, steps)
        assert outcome.text.split() == ["404", "000"]
        assert witness.headers[witness.paths.index("/v1/files")]["x-api-key"] == CANARY
        assert outcome.cost.requests == 1, "the turn's own line, and no other"
        await registry.end(ME, outcome.session_id, delete=True)
