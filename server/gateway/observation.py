"""One model request as traces and metrics see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from server.telemetry.spans import TRACER, mark_failed

if TYPE_CHECKING:
    from server.gateway.requests import Outbound
    from server.models import LedgerEntry
    from server.telemetry.metrics import Metrics


class Observation:
    """Follows a request from its arrival to its ledger entry. Decides nothing.

    Args:
        metrics: told of it in the end.
        parent: the trace of the turn that it belongs to.
    """

    def __init__(self, metrics: Metrics, parent: Context | None) -> None:
        self._metrics = metrics
        self._parent = parent
        self._arrived = anyio.current_time()
        self._waited_s: float | None = None
        self._first_byte_s: float | None = None
        self._span: trace.Span | None = None

    def forwarded(self, outbound: Outbound) -> None:
        """The request goes upstream now."""
        self._waited_s = anyio.current_time() - self._arrived
        model = outbound.model or "unknown"
        self._span = TRACER.start_span(
            f"chat {model}",
            context=self._parent if self._parent is not None else Context(),
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "anthropic",
                "gen_ai.request.model": model,
                "gen_ai.request.max_tokens": outbound.max_tokens,
                "rookery.gateway.waited_s": self._waited_s,
            },
        )

    def answered(self) -> None:
        """The upstream begins its answer."""
        if self._waited_s is not None:
            self._first_byte_s = anyio.current_time() - self._arrived - self._waited_s

    def ended(self, entry: LedgerEntry) -> None:
        """The request is over, and this is what the ledger says of it."""
        self._metrics.model_request(entry, waited_s=self._waited_s, first_byte_s=self._first_byte_s)
        if self._span is None:
            return
        self._span.set_attributes(
            {
                "gen_ai.response.model": entry.model,
                "gen_ai.usage.input_tokens": entry.usage.input_tokens,
                "gen_ai.usage.output_tokens": entry.usage.output_tokens,
                "http.response.status_code": entry.status,
            }
        )
        if entry.upstream_request_id is not None:
            self._span.set_attribute("gen_ai.response.id", entry.upstream_request_id)
        if entry.error is not None or not entry.complete:
            mark_failed(self._span, entry.error or "incomplete")
        self._span.end()
