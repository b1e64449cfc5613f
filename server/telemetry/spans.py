"""Spans of OpenTelemetry: where a trace comes from, and the parts of the house that have one of their own.

Names and attributes follow the semantic conventions for generative AI (``gen_ai.*``). Prompts, answers, paths and
principals are in no span. Without an exporter (:mod:`server.telemetry.export`) all of this costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from server.errors import RookeryError

TRACER: Final = trace.get_tracer("rookery")

CARRIER_KEYS: Final = frozenset({"traceparent", "tracestate"})
"""What crosses to another process (W3C Trace Context). Baggage stays here: it may hold anything."""


def present() -> Context:
    """The trace under way, to go on with elsewhere."""
    return context.get_current()


def carrier() -> dict[str, str]:
    """The trace under way as text for another process; empty when there is none."""
    carried: dict[str, str] = {}
    propagate.inject(carried)
    return {key: value for key, value in carried.items() if key in CARRIER_KEYS}


@contextmanager
def continuing(parent: Context | Mapping[str, Any] | None) -> Iterator[None]:
    """Let what runs in the block belong to a trace that began elsewhere: in another task, or in another process."""
    if parent is None:
        yield
        return
    if not isinstance(parent, Context):
        texts = {key: str(value)[:512] for key, value in parent.items() if key in CARRIER_KEYS}
        parent = propagate.extract(texts)
    token = context.attach(parent)
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def span(name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: str | bool | int | float) -> Iterator[None]:
    """A span round a block. A failure marks it by its code; texts of exceptions are in the log only."""
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    with TRACER.start_as_current_span(
        name, kind=kind, attributes=named, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except Exception as error:
            mark_failed(current, error.code.value if isinstance(error, RookeryError) else type(error).__qualname__)
            raise


def mark_failed(current: trace.Span, error_type: str) -> None:
    """Say that what a span stands for failed."""
    current.set_attribute("error.type", error_type)
    current.set_status(Status(StatusCode.ERROR))
