"""The meter: what a response used, however it is cut and whatever it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gateway.metering import MAX_EVENT, Meter, Reading
from server.gateway.usage import IMAGE_TOKENS, MAX_CONTEXT, estimate_input_tokens
from server.models import Usage
from tests.gateways import closing, delta, event, opening

START = {"input_tokens": 100, "cache_read_input_tokens": 50, "cache_creation_input_tokens": 20, "output_tokens": 1}


def metered(*chunks: bytes, input_estimate: int = 999) -> Reading:
    meter = Meter(input_estimate)
    for chunk in chunks:
        meter.feed(chunk)
    return meter.reading()


def test_a_whole_stream_is_metered_to_the_token() -> None:
    reading = metered(opening(START), delta("hello"), *closing({"output_tokens": 42}))
    assert reading.usage == Usage(input_tokens=100, output_tokens=42, cache_read_tokens=50, cache_write_tokens=20)
    assert reading.complete
    assert not reading.estimated
    assert reading.model == "claude-sonnet-4-5"


@given(st.data())
def test_where_a_stream_is_cut_into_chunks_changes_nothing(data: st.DataObject) -> None:
    whole = b"".join([opening(START), *(delta("wörd " * 9) for _ in range(5)), *closing({"output_tokens": 42})])
    whole = whole.replace(b"\n", b"\r\n") if data.draw(st.booleans()) else whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert metered(*chunks) == metered(whole)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=8), st.integers(1, 3))
def test_cumulative_figures_count_once_however_often_they_come(outputs: list[int], repeats: int) -> None:
    """Row G04: usage in several, repeated ``message_delta`` events."""
    deltas = [event("message_delta", delta={}, usage={"output_tokens": tokens}) for tokens in sorted(outputs)]
    reading = metered(opening(START), *(one for one in deltas for _ in range(repeats)), event("message_stop"))
    assert reading.usage.output_tokens == max(1, *outputs)
    assert reading.usage.input_tokens == 100


def test_what_comes_before_the_end_of_the_message_is_told_apart() -> None:
    meter = Meter(999)
    start, end = opening(START) + closing({"output_tokens": 1})[0], closing({"output_tokens": 1})[1]
    assert meter.feed(start + end[:10]) == len(start) + 10
    assert meter.feed(end[10:] + b": more\n\n") == 0
    assert meter.ended
    whole = Meter(999)
    assert whole.feed(start + end) == len(start)
    assert whole.feed(b": more\n\n") == len(b": more\n\n")


def test_hour_long_cache_writes_are_a_part_of_all_cache_writes() -> None:
    written = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}
    usage = START | {"cache_creation_input_tokens": 100, "cache_creation": written}
    reading = metered(opening(usage), *closing({"output_tokens": 1}))
    assert (reading.usage.cache_write_tokens, reading.usage.cache_write_1h_tokens) == (100, 70)


def test_server_tools_are_counted() -> None:
    tools = {"web_search_requests": 2, "web_fetch_requests": 1}
    reading = metered(opening(START), *closing({"output_tokens": 5, "server_tool_use": tools}))
    assert reading.usage.server_tool_requests == 3


def test_steps_inside_one_response_are_charged_where_the_outer_figures_leave_them_out() -> None:
    steps = [{"input_tokens": 1000, "output_tokens": 300}, {"input_tokens": 200, "output_tokens": 50}]
    reading = metered(opening(START), *closing({"output_tokens": 50, "iterations": steps}))
    assert (reading.usage.input_tokens, reading.usage.output_tokens) == (1200, 350)


@pytest.mark.parametrize("bad", [-1, "12", 1.5, True, None, 1 << 60, [3]])
def test_output_that_cannot_be_believed_is_estimated_and_flagged(bad: Any) -> None:
    """Row G04: usage missing, negative, of a wrong type."""
    reading = metered(opening(START), delta("x" * 300), *closing({"output_tokens": bad}))
    assert reading.usage.output_tokens >= 100
    assert reading.estimated
    assert reading.complete


def test_a_response_without_any_usage_is_charged_by_its_size() -> None:
    reading = metered(opening(None), delta("y" * 300), event("message_delta", delta={}), event("message_stop"))
    assert reading.usage.input_tokens == 999
    assert reading.usage.output_tokens >= 100
    assert reading.estimated


def test_a_cut_stream_is_charged_for_what_came() -> None:
    reading = metered(opening(START), *(delta("some words ") for _ in range(30)))
    assert reading.usage.input_tokens == 100
    assert 60 <= reading.usage.output_tokens <= 300
    assert reading.estimated
    assert not reading.complete


def test_withheld_thinking_in_a_cut_stream_is_charged_by_its_announced_tokens() -> None:
    thinking = {"type": "thinking_delta", "thinking": "", "estimated_tokens": 700}
    reading = metered(opening(START), event("content_block_delta", index=0, delta=thinking))
    assert reading.usage.output_tokens == 700


def test_an_error_event_ends_the_message_without_completing_it() -> None:
    error = {"type": "overloaded_error", "message": "busy"}
    reading = metered(opening(START), delta("abc"), event("error", error=error))
    assert (reading.complete, reading.error_type, reading.error_message) == (False, "overloaded_error", "busy")


def test_a_giant_event_passes_unread_in_bounded_memory() -> None:
    """Row G02: giant SSE event."""
    meter = Meter(999)
    meter.feed(opening(START))
    meter.feed(b"event: content_block_start\ndata: ")
    for _ in range(3 * MAX_EVENT // 65536):
        meter.feed(b"x" * 65536)
        assert meter.held_bytes <= MAX_EVENT + 65536
    meter.feed(b"\n\n" + b"".join(closing({"output_tokens": 7})))
    reading = meter.reading()
    assert reading.complete
    assert reading.estimated
    assert reading.usage.output_tokens >= 7


@pytest.mark.parametrize(
    "junk", [b"data: {not json\n\n", b"event: message_delta\ndata: []\n\n", b": comment\n\n", b"\n\n"]
)
def test_junk_between_events_does_not_hide_the_figures(junk: bytes) -> None:
    reading = metered(opening(START), junk, *closing({"output_tokens": 42}))
    assert reading.usage.output_tokens >= 42
    assert reading.complete


def test_a_whole_document_is_metered() -> None:
    meter = Meter(999)
    meter.feed_json(json.dumps({"model": "claude-opus-4-5", "usage": START | {"output_tokens": 9}}).encode())
    reading = meter.reading()
    assert (reading.usage.output_tokens, reading.model, reading.estimated) == (9, "claude-opus-4-5", False)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"usage": 3}', b"[" * 100_000])
def test_a_document_without_figures_is_charged_by_its_size_and_flagged(content: bytes) -> None:
    meter = Meter(999)
    meter.feed_json(content)
    reading = meter.reading()
    assert reading.usage.input_tokens == 999
    assert reading.estimated


def test_the_estimate_of_input_counts_an_image_as_an_image_and_text_by_its_bytes() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "A" * 3_000_000}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 3000}, image]}]}
    estimate = estimate_input_tokens(body, len(json.dumps(body)))
    assert 1000 + IMAGE_TOKENS <= estimate <= 1200 + IMAGE_TOKENS


def test_the_estimate_of_input_never_passes_the_largest_context() -> None:
    assert estimate_input_tokens({"messages": []}, 1 << 30) == MAX_CONTEXT
