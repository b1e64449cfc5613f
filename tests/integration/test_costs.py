"""Costs and caps as a caller sees them: through the registry, with real sandboxes and the real CLI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from rich.console import Console

from rookery.cost_tables import show_costs
from server import sandbox_meter
from server.errors import ErrorCode, RookeryError
from server.models import EventKind, StopReason
from server.requests import CostRequest
from tests.house import ME, bash, events, go_on, open_house, run, say, seen, settled, spawn

pytestmark = pytest.mark.providers

USAGE: dict[str, Any] = {"usage": {"input_tokens": 1000, "output_tokens": 2000}}
SONNET = "claude-sonnet-4-5"


async def test_a_report_tells_spent_reserved_and_left_beside_the_sdks_own_figure(tmp_path: Path) -> None:
    async with open_house(tmp_path, daily_budget_usd=50, sandbox_usd_per_s=0.001) as registry:
        outcome = await run(registry, [USAGE, {"text": "done"}], model=SONNET, budget_usd=2, budget_tokens=100_000)
        await go_on(registry, outcome.session_id, [USAGE, {"text": "more"}])
        await registry.end(ME, outcome.session_id, delete=False)
        report = await registry.costs(ME, CostRequest(session_id=outcome.session_id, group_by="model"))
        # 1,000 input at $3 and 2,000 output at $15 a million, twice; the rest of the total is the sandbox.
        requests = report.total.usd - report.total.sandbox_usd
        assert requests == pytest.approx(2 * (0.003 + 0.030))
        assert report.total.sandbox_seconds > 0
        assert report.total.sandbox_usd == pytest.approx(report.total.sandbox_seconds * 0.001, abs=1e-6)
        assert {group.key for group in report.groups} == {SONNET, "sandbox bubblewrap"}
        own, day = report.budgets
        assert (own.scope, own.budget_usd, own.budget_tokens) == ("session", 2, 100_000)
        assert own.spent_usd == pytest.approx(report.total.usd)
        assert (own.reserved_usd, own.spent_tokens, own.remaining_tokens) == (0, 6000, 94_000)
        assert own.remaining_usd == pytest.approx(2 - report.total.usd)
        assert (day.scope, day.budget_usd) == ("day", 50)
        assert report.sdk_usd is not None

        console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
        await show_costs(None, "model", tree=False)(registry, console)
        text = console.export_text()
        assert SONNET in text
        assert "sandbox bubblewrap" in text
        assert "left" in text


async def test_a_cap_in_tokens_binds_before_the_money_does_and_can_be_raised(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        steps: list[dict[str, Any]] = [{"text": "never said"}]
        outcome = await run(registry, steps, model=SONNET, budget_tokens=3000)
        assert outcome.stop_reason is StopReason.BUDGET_EXCEEDED
        assert outcome.error is not None
        assert "budget_tokens" in outcome.error.message
        with pytest.raises(RookeryError, match="budget_tokens") as caught:
            spent: list[dict[str, Any]] = [{"usage": {"input_tokens": 9000, "output_tokens": 10}}, {"text": "dear"}]
            await go_on(registry, outcome.session_id, spent, budget_tokens=500_000)
            await say(registry, outcome.session_id, steps, budget_tokens=9010)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
        outcome = await go_on(registry, outcome.session_id, [{"text": "afforded"}])
        assert (outcome.stop_reason, outcome.text) == (StopReason.END_TURN, "afforded")


async def test_time_in_a_priced_sandbox_ends_a_turn_that_it_has_used_the_budget_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_meter, "STRETCH_S", 0.5)
    async with open_house(tmp_path, sandbox_usd_per_s=1) as registry:
        steps = [bash("while :; do read -t 1 < /dev/zero || :; done"), {"text": "never said"}]
        session_id = await spawn(registry, steps, model=SONNET, budget_usd=0.3)
        outcome = await settled(registry, session_id)
        assert outcome.stop_reason is StopReason.BUDGET_EXCEEDED
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.BUDGET_EXCEEDED
        assert outcome.budget_remaining_usd == 0


async def test_a_cap_that_comes_near_is_an_event_and_shows_in_the_progress(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        usage = {"usage": {"input_tokens": 1000, "output_tokens": 55_000}}
        steps = [usage, bash("read -t 30 < <(:) ; mkfifo f; read < f"), {"text": "done"}]
        session_id = await spawn(registry, steps, model=SONNET, budget_usd=1)
        warning = await seen(registry, session_id, EventKind.BUDGET)
        assert (warning.data["scope"], warning.data["percent"]) == ("session", 80)
        assert (await registry.progress(ME, session_id)).budget_percent == 82
        await registry.interrupt(ME, session_id)
        with anyio.fail_after(60):
            assert len([one for one in await events(registry, session_id) if one.kind is EventKind.BUDGET]) == 1
