"""Metrics: what a scraper reads is what happened, and nobody's name is in it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from rookery.application import open_registry
from server.errors import ErrorCode
from server.models import Usage
from server.telemetry.prometheus import MAX_MODELS, OTHER, PrometheusMetrics
from server.views import Census
from tests.house import ME, bash, run, settings_for
from tests.unit.store.records import a_request


def samples(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and labels."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def total(seen: dict[tuple[str, tuple[str, ...]], float], name: str, label: str | None = None) -> float:
    """The sum over all labels, or over those with one of them."""
    return sum(value for (own, labels), value in seen.items() if own == name and (label is None or label in labels))


async def test_a_turn_shows_in_the_metrics_as_the_ledger_has_it(tmp_path: Path) -> None:
    metrics = PrometheusMetrics()
    async with open_registry(settings_for(tmp_path), metrics=metrics) as registry:
        denied = await run(registry, [{"tool": "Read", "input": {"file_path": "/etc/passwd"}}, {"text": "no"}])
        done = await run(registry, [bash("true"), {"text": "done"}])
        registry.failed(ErrorCode.SESSION_BUSY)
        seen = samples(metrics.render(await registry.census()))
        text = metrics.render(await registry.census()).decode()
    assert seen["rookery_sessions", ("idle",)] == 2
    assert seen["rookery_agents", ()] == 2
    assert seen["rookery_turns_total", ("end_turn",)] == 2
    assert seen["rookery_denials_total", ()] == denied.denials >= 1
    assert seen["rookery_errors_total", ("session_busy", "call")] == 1
    assert seen["rookery_spawn_seconds_count", ("cold",)] == 2
    tokens = total(seen, "rookery_tokens_total", "output")
    assert tokens == denied.cost.output_tokens + done.cost.output_tokens
    dollars = total(seen, "rookery_cost_usd_total")
    assert round(dollars, 6) == round(denied.cost.usd + done.cost.usd, 6)
    requests = denied.cost.requests + done.cost.requests
    assert seen["rookery_gateway_first_byte_seconds_count", ()] == requests
    for private in (ME, denied.session_id, done.session_id, str(tmp_path)):
        assert f'"{private}' not in text, "T04: nothing of anybody is a label"


def test_made_up_models_share_one_label() -> None:
    metrics = PrometheusMetrics()
    for number in range(3 * MAX_MODELS):
        entry = a_request("r", "s", model=f"model-{number}", usage=Usage(input_tokens=1), price_source="table")
        metrics.model_request(entry, waited_s=0.001, first_byte_s=None)
    seen = samples(metrics.render(Census(states={}, approvals_waiting=0, agents=0)))
    labels = {labels for name, labels in seen if name == "rookery_tokens_total"}
    assert len(labels) == MAX_MODELS + 1
    assert ("input", OTHER) in labels
