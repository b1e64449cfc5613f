"""Traces: one from the client's call through tool, turn, sandbox, model request and tool call to its shell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.gateway.scripted import prompt_with
from tests.house import ME, bash, open_house, run, say, settled
from tests.surface import connected

SECRET_WORDS = "the quick brown fox"

_exporter = InMemorySpanExporter()


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What would be exported."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(_exporter))
        trace.set_tracer_provider(provider)
    _exporter.clear()
    yield _exporter


def by_name(spans: InMemorySpanExporter, trace_id: int) -> dict[str, ReadableSpan]:
    """The spans of one trace; of those with one name the first."""
    found: dict[str, ReadableSpan] = {}
    for span in sorted(spans.get_finished_spans(), key=lambda span: span.start_time or 0):
        if span.context.trace_id == trace_id:
            found.setdefault(span.name, span)
    return found


def parents(found: Mapping[str, ReadableSpan], name: str) -> list[str]:
    """The names of the spans above one, nearest first."""
    names = {span.context.span_id: key for key, span in found.items()}
    line, span = [], found[name]
    while span.parent is not None and span.parent.span_id in names:
        line.append(names[span.parent.span_id])
        span = found[line[-1]]
    return line


async def test_a_trace_runs_from_the_client_into_the_shell_of_the_agent(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    prompt = prompt_with([{"text": SECRET_WORDS}, bash("echo [$TRACEPARENT]"), {"text": "done"}])
    async with open_house(tmp_path) as registry, connected(registry) as client:
        with trace.get_tracer("test").start_as_current_span("person asks") as asked:
            result = await client.call_tool("spawn_agent", {"prompt": prompt})
        assert result.structured_content is not None
        assert result.structured_content["stop_reason"] == "end_turn"
        page = await registry.transcript(ME, result.structured_content["session_id"], after=0, limit=100)
    trace_id = asked.get_span_context().trace_id
    found = by_name(spans, trace_id)
    tool, turn = "tools/call spawn_agent", "invoke_agent rookery"
    assert parents(found, turn)[0] == tool
    assert parents(found, turn)[-1] == "person asks"
    chat = next(name for name in found if name.startswith("chat "))
    for name in ("sandbox open", "agent start", "execute_tool Bash", chat):
        assert parents(found, name)[0] == turn, name
    attributes = found[chat].attributes
    assert attributes is not None
    assert attributes["gen_ai.usage.output_tokens"]
    assert attributes["http.response.status_code"] == 200
    assert f"{trace_id:032x}" in str([event.data for event in page.events])
    everything = "".join(span.to_json() for span in found.values())
    assert SECRET_WORDS not in everything
    assert str(tmp_path) not in everything


async def test_each_turn_belongs_to_the_call_that_asked_for_it_also_from_another_process(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    async with open_house(tmp_path) as owner, open_house(tmp_path) as other:
        tracer = trace.get_tracer("test")
        first = await run(owner, [{"text": "one"}])
        for registry, name in ((owner, "asked at home"), (other, "asked elsewhere")):
            with tracer.start_as_current_span(name) as asked:
                await say(registry, first.session_id, [{"text": "two"}])
            await settled(registry, first.session_id)
            found = by_name(spans, asked.get_span_context().trace_id)
            assert parents(found, "invoke_agent rookery") == [name]


async def test_a_failed_turn_marks_its_span_by_the_code(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        with trace.get_tracer("test").start_as_current_span("asked") as asked:
            outcome = await run(registry, [{"error": 401}])
    assert outcome.error is not None
    turn = by_name(spans, asked.get_span_context().trace_id)["invoke_agent rookery"]
    assert turn.attributes is not None
    assert turn.attributes["error.type"] == outcome.error.code.value == "model_auth_failed"
