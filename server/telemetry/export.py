"""Where traces go. Chosen by the variables of OpenTelemetry itself (``OTEL_*``); by default nowhere.

The SDK is an extra (``rookery[telemetry]``): a server that is to export and has it not says so once and works on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog
from opentelemetry import trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SHUTDOWN_S: Final = 3.0
"""How long the last spans may take to leave when the server ends; a collector that is gone must not hold it up."""

log = structlog.get_logger(__name__)


def wanted(environment: Mapping[str, str]) -> str | None:
    """The exporter asked for, ``otlp`` or ``console``; None where traces go nowhere.

    As the OpenTelemetry specification has it: ``OTEL_SDK_DISABLED`` and ``OTEL_TRACES_EXPORTER=none`` switch it off;
    unlike it, an exporter needs to be named or to have an endpoint, so that nobody is sent to by default.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    named = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if named:
        return named if named in ("otlp", "console") else None
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return "otlp" if any(environment.get(name) for name in endpoints) else None


@asynccontextmanager
async def exporting() -> AsyncIterator[None]:
    """Export traces while the block runs, if the environment asks for it."""
    exporter = wanted(os.environ)
    provider = await anyio.to_thread.run_sync(_provider, exporter) if exporter is not None else None
    if provider is not None:
        trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        if provider is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(SHUTDOWN_S):
                await anyio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)


def _provider(exporter: str) -> TracerProvider | None:
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

        target: SpanExporter
        if exporter == "otlp":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            target = OTLPSpanExporter()
        else:
            # stdout may be the wire.
            target = ConsoleSpanExporter(out=sys.stderr)
    except ImportError as error:
        log.warning("traces are not exported: install rookery[telemetry]", error=str(error))
        return None
    attributes = {"service.version": version("rookery")}
    if "OTEL_SERVICE_NAME" not in os.environ and "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        attributes["service.name"] = "rookery"
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(target))
    return provider
