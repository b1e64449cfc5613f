"""Metrics in the form that Prometheus scrapes: counted in this process, or read from the store when asked."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from server.errors import ErrorCode
from server.models import NANO_USD, LedgerEntry, SessionState, TurnRecord, Usage
from server.telemetry.metrics import Metrics
from server.views import Census

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

MAX_MODELS: Final = 64
"""Models that have a label of their own. Names come from agents, who may make up any number of them."""

OTHER: Final = "other"

SPAWN_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
WAIT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10, 60, 300)
FIRST_BYTE_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class PrometheusMetrics(Metrics):
    """Counts for a scraper."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._models: set[str] = set()
        self._sessions = Gauge("rookery_sessions", "Sessions in the store by state", ["state"], registry=registry)
        self._waiting = Gauge("rookery_approvals_waiting", "Tool calls that wait for a decision", registry=registry)
        self._resident = Gauge("rookery_agents", "Agents that live in this process", registry=registry)
        self._spawn = Histogram(
            "rookery_spawn_seconds",
            "From the call until the session is durable and has its sandbox",
            ["start"],
            buckets=SPAWN_BUCKETS,
            registry=registry,
        )
        self._turns = Counter(
            "rookery_turns", "Turns by the reason why they stopped", ["stop_reason"], registry=registry
        )
        self._denials = Counter("rookery_denials", "Tool calls that policies or people refused", registry=registry)
        self._errors = Counter("rookery_errors", "Failed calls and turns by code", ["where", "code"], registry=registry)
        self._requests = Counter(
            "rookery_model_requests", "Model requests by status", ["model", "status"], registry=registry
        )
        self._tokens = Counter("rookery_tokens", "Tokens by kind", ["model", "kind"], registry=registry)
        self._dollars = Counter("rookery_cost_usd", "What model requests cost", ["model"], registry=registry)
        self._wait = Histogram(
            "rookery_gateway_wait_seconds",
            "From a request's arrival at the gateway until it is forwarded: budgets and rate limits",
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        self._first_byte = Histogram(
            "rookery_gateway_first_byte_seconds",
            "From forwarding a request until the upstream's first byte",
            buckets=FIRST_BYTE_BUCKETS,
            registry=registry,
        )

    def spawned(self, seconds: float, *, warm: bool) -> None:
        self._spawn.labels("warm" if warm else "cold").observe(seconds)

    def turn_ended(self, turn: TurnRecord) -> None:
        if turn.stop_reason is not None:
            self._turns.labels(turn.stop_reason.value).inc()
        if turn.denials:
            self._denials.inc(turn.denials)
        if turn.error is not None:
            self._errors.labels("turn", turn.error.code.value).inc()

    def failed(self, code: ErrorCode) -> None:
        self._errors.labels("call", code.value).inc()

    def model_request(self, entry: LedgerEntry, *, waited_s: float | None, first_byte_s: float | None) -> None:
        model = self._label(entry)
        self._requests.labels(model, str(entry.status)).inc()
        for kind, count in _kinds(entry.usage).items():
            if count:
                self._tokens.labels(model, kind).inc(count)
        if entry.nano_usd:
            self._dollars.labels(model).inc(entry.nano_usd / NANO_USD)
        if waited_s is not None:
            self._wait.observe(waited_s)
        if first_byte_s is not None:
            self._first_byte.observe(first_byte_s)

    def _label(self, entry: LedgerEntry) -> str:
        """A model whose price is known, if there is room for it."""
        if entry.model in self._models:
            return entry.model
        if entry.price_source is None or len(self._models) >= MAX_MODELS:
            return OTHER
        self._models.add(entry.model)
        return entry.model

    def render(self, census: Census) -> bytes:
        """What a scrape is answered with.

        Args:
            census: what there is at the moment.
        """
        for state in SessionState:
            self._sessions.labels(state.value).set(census.states.get(state, 0))
        self._waiting.set(census.approvals_waiting)
        self._resident.set(census.agents)
        return generate_latest(self._registry)


def _kinds(usage: Usage) -> dict[str, int]:
    """Tokens by kind, each counted once."""
    return {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "cache_read": usage.cache_read_tokens,
        "cache_write_5m": usage.cache_write_tokens - usage.cache_write_1h_tokens,
        "cache_write_1h": usage.cache_write_1h_tokens,
    }
