"""The gateway between real HTTP connections: streaming, metering whatever happens, failures, grants, the ledger."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import structlog

from server.errors import ErrorCode, RookeryError
from server.gateway import Grant, Upstream, anthropic_upstream, classify
from server.gateway.grants import Terms
from server.gateway.listener import unix_listener
from server.gateway.scripted import prompt_with, scripted_upstream
from server.gateway.upstream import OAUTH_BETA, credential_of
from server.models import LedgerEntry, Usage
from server.settings import Settings
from tests.gateways import (
    CANARY,
    MODEL,
    PATIENCE_S,
    House,
    MemoryLedger,
    Seen,
    closing,
    delta,
    event,
    gateway_before,
    gateway_before_scripted,
    open_gateway,
    opening,
    replies,
    request,
    serving,
    streams,
)

if TYPE_CHECKING:
    import httpx2
    from starlette.types import Receive, Scope, Send

START = {"input_tokens": 100, "output_tokens": 1}
WHOLE = [opening(START), delta("hello"), *closing({"output_tokens": 20})]


async def post(house: House, grant: Grant, body: dict[str, Any] | None = None) -> httpx2.Response:
    async with house.client(grant.token) as client:
        return await client.post("/v1/messages?beta=true", json=body or request(stream=True))


async def test_a_stream_passes_byte_for_byte_and_is_written_into_the_ledger_once() -> None:
    async with gateway_before(streams(WHOLE)) as (house, fake):
        grant = house.grant()
        grant.turn = 7
        response = await post(house, grant)
        assert response.content == b"".join(WHOLE)
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["request-id"] == "req_1"
        [entry] = house.ledger.entries
        assert entry.usage == Usage(input_tokens=100, output_tokens=20)
        assert (entry.session_id, entry.root_id, entry.principal, entry.turn) == ("session-1", "session-1", "local", 7)
        assert (entry.status, entry.complete, entry.estimated, entry.error) == (200, True, False, None)
        assert entry.nano_usd == 100 * 3000 + 20 * 15000
        assert entry.model == MODEL
        assert entry.upstream_request_id == "req_1"
        assert entry.started_at <= entry.ended_at
        assert fake.seen[0].query == "beta=true"
        assert (grant.requests, grant.in_flight, grant.failures) == (1, 0, [])


async def test_events_reach_the_agent_as_they_come_not_when_all_are_there() -> None:
    go_on = anyio.Event()
    async with gateway_before(streams(WHOLE[:2], until=go_on, then=WHOLE[2:])) as (house, _):
        grant = house.grant()
        with anyio.fail_after(PATIENCE_S):
            async with (
                house.client(grant.token) as client,
                client.stream("POST", "/v1/messages", json=request(stream=True)) as response,
            ):
                received = b""
                async for chunk in response.aiter_raw():
                    received += chunk
                    if received == b"".join(WHOLE[:2]):
                        assert grant.in_flight == 1
                        assert not house.ledger.entries
                        go_on.set()
                assert received == b"".join(WHOLE)


async def test_the_ledger_knows_before_the_agent_can_read_that_its_answer_is_complete() -> None:
    entered, go_on = anyio.Event(), anyio.Event()

    class SlowLedger(MemoryLedger):
        async def record_request(self, entry: Any) -> None:
            entered.set()
            await go_on.wait()
            await super().record_request(entry)

    async with gateway_before(streams(WHOLE), ledger=SlowLedger()) as (house, _):
        received = bytearray()

        async def read() -> None:
            async with (
                house.client(house.grant().token) as client,
                client.stream("POST", "/v1/messages", json=request(stream=True)) as response,
            ):
                async for chunk in response.aiter_raw():
                    received.extend(chunk)

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await entered.wait()
                assert b"message_stop" not in received
                go_on.set()
        assert b"message_stop" in received


async def test_a_whole_document_is_metered_too() -> None:
    answer = {"id": "msg_1", "model": MODEL, "usage": START | {"output_tokens": 9}, "content": []}
    async with gateway_before(replies(200, answer)) as (house, _):
        response = await post(house, house.grant(), request())
        assert response.json() == answer
        assert house.ledger.usage == Usage(input_tokens=100, output_tokens=9)


async def test_counting_tokens_and_listing_models_are_forwarded_and_cost_nothing() -> None:
    async with gateway_before_scripted() as (house, _):
        grant = house.grant()
        async with house.client(grant.token) as client:
            count = await client.post("/v1/messages/count_tokens", json=request("some words"))
            assert count.json()["input_tokens"] > 0
            models = await client.get("/v1/models?limit=1000")
            assert models.json()["data"]
        assert not house.ledger.entries
        assert grant.requests == 0


async def test_a_model_without_a_known_price_is_kept_with_its_tokens_and_no_price() -> None:
    """Row G05: unknown, never zero."""
    async with gateway_before(streams([opening(START, "claude-next"), *closing({"output_tokens": 5})])) as (house, _):
        await post(house, house.grant(), request(stream=True, model="claude-next"))
        [entry] = house.ledger.entries
        assert entry.usage == Usage(input_tokens=100, output_tokens=5)
        assert (entry.nano_usd, entry.price_source) == (None, None)


async def test_g03_a_client_that_leaves_in_the_midst_pays_for_what_came_and_stops_the_upstream() -> None:
    """Row G03: client drops mid-stream."""
    gone = anyio.Event()

    async def answer(_scope: Scope, receive: Receive, send: Send, _seen: Seen) -> None:
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": opening(START) + delta("x" * 300), "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with gateway_before(answer) as (house, _):
        grant = house.grant()
        with anyio.fail_after(PATIENCE_S):
            async with (
                house.client(grant.token) as client,
                client.stream("POST", "/v1/messages", json=request(stream=True)) as response,
            ):
                async for _chunk in response.aiter_raw():
                    break
            await gone.wait()
            await grant.quiet()
        [entry] = house.ledger.entries
        assert entry.usage.input_tokens == 100
        assert entry.usage.output_tokens >= 100
        assert (entry.complete, entry.estimated, entry.error) == (False, True, None)
        assert not grant.failures


async def test_g03_a_client_that_leaves_before_the_answer_pays_an_estimate() -> None:
    """Row G03: never free tokens."""
    never = anyio.Event()

    async def answer(_scope: Scope, _receive: Receive, _send: Send, _seen: Seen) -> None:
        await never.wait()

    async with gateway_before(answer) as (house, fake):
        grant = house.grant()
        with anyio.fail_after(PATIENCE_S):
            for number, body in enumerate((request("w" * 3000, stream=True), request("w" * 3000))):
                async with anyio.create_task_group() as group:
                    group.start_soon(post, house, grant, body)
                    while len(fake.seen) <= number:
                        await anyio.wait_all_tasks_blocked()
                    group.cancel_scope.cancel()
                await grant.quiet()
        streamed, whole = house.ledger.entries
        assert streamed.usage.input_tokens >= 1000
        assert streamed.usage.output_tokens == 0
        # What is not streamed may have come to its end unseen.
        assert whole.usage.output_tokens == 100
        assert all(entry.estimated and not entry.complete for entry in house.ledger.entries)
        never.set()


async def test_g04_a_stream_that_the_upstream_cuts_is_charged_and_told_to_the_agent() -> None:
    """Row G04: half SSE."""
    async with gateway_before(streams(WHOLE[:2], cut=True)) as (house, _):
        grant = house.grant()
        response = await post(house, grant)
        assert b"event: error" in response.content
        [entry] = house.ledger.entries
        assert (entry.complete, entry.error, entry.usage.input_tokens) == (False, "api_error", 100)
        error = classify(grant.failures)
        assert error is not None
        assert error.code is ErrorCode.MODEL_UNAVAILABLE


async def test_a_stream_that_is_cut_after_the_end_of_its_message_is_a_whole_answer() -> None:
    async with gateway_before(streams(WHOLE, cut=True)) as (house, _):
        grant = house.grant()
        assert (await post(house, grant)).content == b"".join(WHOLE)
        [entry] = house.ledger.entries
        assert (entry.complete, entry.error) == (True, None)
        assert not grant.failures


async def test_g04_a_stream_that_ends_without_its_end_counts_as_cut() -> None:
    """Row G04."""
    async with gateway_before(streams(WHOLE[:2])) as (house, _):
        grant = house.grant()
        assert b"event: error" in (await post(house, grant)).content
        assert not house.ledger.entries[0].complete
        assert grant.failures


async def test_g04_an_error_event_is_a_failure_of_its_type() -> None:
    """Row G04: an error in the midst of a stream."""
    error = event("error", error={"type": "rate_limit_error", "message": "slow down"})
    async with gateway_before(streams([opening(START), error])) as (house, _):
        grant = house.grant()
        assert (await post(house, grant)).content == opening(START) + error
        [entry] = house.ledger.entries
        assert (entry.status, entry.complete, entry.error) == (200, False, "rate_limit_error")
        verdict = classify(grant.failures)
        assert verdict is not None
        assert verdict.code is ErrorCode.MODEL_RATE_LIMITED


@pytest.mark.parametrize(
    ("status", "error_type", "given", "retry"),
    [
        (400, "invalid_request_error", 400, None),
        (401, "authentication_error", 401, "false"),
        (403, "permission_error", 403, "false"),
        (404, "not_found_error", 404, "false"),
        (413, "request_too_large", 413, None),
        (429, "rate_limit_error", 429, None),
        (500, "api_error", 500, None),
        (529, "overloaded_error", 529, None),
    ],
)
async def test_g04_errors_of_the_upstream_pass_in_a_form_that_stops_useless_retries(
    status: int, error_type: str, given: int, retry: str | None
) -> None:
    """Row G04: typed retry."""
    body = {"type": "error", "error": {"type": error_type, "message": "no"}}
    async with gateway_before(replies(status, body, {"retry-after": "3", "request-id": "req_9"})) as (house, _):
        grant = house.grant()
        response = await post(house, grant)
        assert response.status_code == given
        assert response.json() == body
        assert response.headers.get("x-should-retry") == retry
        assert response.headers["retry-after"] == "3"
        [failure] = grant.failures
        assert (failure.status, failure.error_type, failure.retry_after) == (status, error_type, 3)
        [entry] = house.ledger.entries
        assert (entry.status, entry.error, entry.usage, entry.nano_usd) == (given, error_type, Usage(), 0)
        assert entry.upstream_request_id == "req_9"


async def test_an_account_without_credit_is_told_to_the_agent_as_402() -> None:
    error = {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."}
    async with gateway_before(replies(400, {"type": "error", "error": error})) as (house, _):
        grant = house.grant()
        response = await post(house, grant)
        assert (response.status_code, response.json()["error"]["type"]) == (402, "billing_error")
        assert response.headers["x-should-retry"] == "false"
        verdict = classify(grant.failures)
        assert verdict is not None
        assert verdict.code is ErrorCode.MODEL_AUTH_FAILED


async def test_an_upstream_out_of_reach_is_a_typed_failure_that_costs_nothing(tmp_path: Path) -> None:
    async with open_gateway(Upstream("http://nowhere.test", socket=tmp_path / "none.sock")) as house:
        grant = house.grant()
        response = await post(house, grant)
        assert response.status_code == 502
        [entry] = house.ledger.entries
        assert (entry.status, entry.usage, entry.complete) == (0, Usage(), False)
        verdict = classify(grant.failures)
        assert verdict is not None
        assert (verdict.code, verdict.retryable) == (ErrorCode.MODEL_UNAVAILABLE, True)


async def test_a_later_success_clears_what_a_retry_overcame() -> None:
    async with gateway_before_scripted() as (house, _):
        grant = house.grant()
        body = request(prompt_with([{"error": 529, "times": 1}, {"text": "ok"}]), stream=True)
        assert (await post(house, grant, body)).status_code == 529
        assert classify(grant.failures) is not None
        assert (await post(house, grant, body)).status_code == 200
        assert classify(grant.failures) is None
        assert [entry.status for entry in house.ledger.entries] == [529, 200]


async def test_revoking_a_grant_cuts_its_streams_and_meters_them() -> None:
    async with gateway_before(streams(WHOLE[:2], until=anyio.Event())) as (house, _):
        grant, token = (kept := house.grant()), kept.token
        with anyio.fail_after(PATIENCE_S):
            async with (
                house.client(token) as client,
                client.stream("POST", "/v1/messages", json=request(stream=True)) as response,
            ):
                received = b""
                async for chunk in response.aiter_raw():
                    received += chunk
                    if received == b"".join(WHOLE[:2]):
                        grant.revoke()
                assert b"authentication_error" in received
            await grant.quiet()
        [entry] = house.ledger.entries
        assert (entry.complete, entry.usage.input_tokens) == (False, 100)
        assert grant.token == ""


async def test_the_end_of_the_server_settles_what_runs() -> None:
    """Row C09, the gateway's part: nothing in flight is lost when the server stops."""
    started = anyio.Event()

    async def answer(_scope: Scope, _receive: Receive, send: Send, _seen: Seen) -> None:
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": opening(START), "more_body": True})
        started.set()
        await anyio.sleep_forever()

    ledger = MemoryLedger()
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            async with gateway_before(answer, ledger=ledger) as (house, _):
                group.start_soon(post, house, house.grant())
                await started.wait()
                await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    [entry] = ledger.entries
    assert (entry.complete, entry.usage.input_tokens) == (False, 100)


async def test_a_ledger_that_fails_at_first_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gateway.recorder.PAUSES_S", (0, 0))
    async with gateway_before(streams(WHOLE), ledger=MemoryLedger(failures_left=2)) as (house, _):
        assert (await post(house, house.grant())).status_code == 200
        assert len(house.ledger.entries) == 1


async def test_without_a_ledger_no_further_request_passes_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gateway.recorder.PAUSES_S", (0, 0))
    async with gateway_before(streams(WHOLE), ledger=MemoryLedger(failures_left=4)) as (house, fake):
        grant, other = house.grant(), house.grant("session-2")
        assert (await post(house, grant)).status_code == 200
        assert not house.ledger.entries
        refused = await post(house, grant)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (503, "false")
        assert len(fake.seen) == 1
        verdict = classify(grant.failures)
        assert verdict is not None
        assert verdict.code is ErrorCode.STORAGE_UNAVAILABLE
        # The disk is free again: what waited is written first.
        assert (await post(house, other)).status_code == 200
        assert (await post(house, grant)).status_code == 200
        assert [entry.session_id for entry in house.ledger.entries] == ["session-2", "session-1", "session-1"]


async def test_a_request_that_may_not_be_made_now_is_told_why_and_one_without_a_policy_that_there_is_none() -> None:
    async with gateway_before(streams(WHOLE)) as (house, fake):
        grant = house.grant()
        for code, told in (
            (ErrorCode.POLICY_DENIED, "Other calls come first."),
            (ErrorCode.INVALID_ARGUMENT, "The policy of this session cannot be read"),
        ):

            def terms(code: ErrorCode = code) -> Terms:
                raise RookeryError(code, "Other calls come first.")

            grant.terms = terms
            refused = await post(house, grant)
            assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
            assert refused.json()["error"]["message"].startswith(told)
        assert not fake.seen


async def test_a_write_that_failed_only_after_long_is_tried_again_with_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store that hangs must not keep an agent from its end three times over."""
    monkeypatch.setattr("server.gateway.recorder.ENOUGH_S", -1)
    async with gateway_before(streams(WHOLE), ledger=MemoryLedger(failures_left=1)) as (house, _):
        grant = house.grant()
        assert (await post(house, grant)).status_code == 200
        assert (house.ledger.attempts, house.ledger.entries) == (1, [])
        assert (await post(house, grant)).status_code == 200
        assert len(house.ledger.entries) == 2


async def test_an_entry_that_waits_its_turn_to_be_written_holds_up_nothing_else() -> None:
    """A busy ledger is no broken one: what waits behind others is written once, and nobody is refused meanwhile."""
    free = anyio.Event()

    class BusyLedger(MemoryLedger):
        async def record_request(self, entry: LedgerEntry) -> None:
            await free.wait()
            await super().record_request(entry)

    async with gateway_before(streams(WHOLE), ledger=BusyLedger()) as (house, fake):
        grant = house.grant()
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                for number in range(3):
                    group.start_soon(post, house, grant)
                    while len(fake.seen) <= number:
                        await anyio.wait_all_tasks_blocked()
                free.set()
        assert (house.ledger.attempts, len(house.ledger.entries)) == (3, 3)
        assert not grant.failures


async def test_an_agent_may_not_ask_too_much_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gateway.exchange.MAX_IN_FLIGHT", 2)
    go_on = anyio.Event()
    async with gateway_before(streams(WHOLE[:1], until=go_on, then=WHOLE[1:])) as (house, fake):
        grant = house.grant()
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(post, house, grant)
                group.start_soon(post, house, grant)
                while len(fake.seen) < 2:
                    await anyio.wait_all_tasks_blocked()
                response = await post(house, grant)
                assert (response.status_code, response.headers["retry-after"]) == (429, "1")
                go_on.set()
        assert (await post(house, grant)).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_g02_an_agent_has_so_many_bytes_of_requests_in_memory_at_a_time_and_no_more(
    monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    """Row G02: many large bodies, none of them too large by itself, before an upstream that takes its time."""
    monkeypatch.setattr("server.gateway.exchange.MAX_HELD_BYTES", 25_000)
    go_on = anyio.Event()
    body = json.dumps(request("w" * 10_000, stream=True)).encode()

    async def send(house: House, grant: Grant) -> httpx2.Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield body

        async with house.client(grant.token) as client:
            return await client.post("/v1/messages", content=pieces() if chunked else body)

    async with gateway_before(streams(WHOLE[:1], until=go_on, then=WHOLE[1:])) as (house, fake):
        grant = house.grant()
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(send, house, grant)
                group.start_soon(send, house, grant)
                while len(fake.seen) < 2:
                    await anyio.wait_all_tasks_blocked()
                response = await send(house, grant)
                assert (response.status_code, response.headers["retry-after"]) == (429, "1")
                group.start_soon(send, house, house.grant("another"))
                while len(fake.seen) < 3:
                    await anyio.wait_all_tasks_blocked()
                go_on.set()
        assert (await send(house, grant)).status_code == 200
        assert (grant.held_bytes, len(fake.seen)) == (0, 4)


@pytest.mark.parametrize("location", ["https://evil.test/v1/messages", "/v1/files"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_g06_no_redirect_is_followed(status: int, location: str) -> None:
    """Row G06: an upstream's redirect would carry the key to another host."""
    async with gateway_before(replies(status, b"", {"location": location})) as (house, fake):
        grant = house.grant()
        response = await post(house, grant)
        assert (response.status_code, response.headers["x-should-retry"]) == (502, "false")
        assert "location" not in response.headers
        assert len(fake.seen) == 1
        assert grant.failures
        assert house.ledger.entries[0].status == 502


async def test_only_allowed_headers_of_the_upstream_reach_the_sandbox() -> None:
    headers = {
        "set-cookie": "a=b",
        "server": "x",
        "anthropic-organization-id": "org",
        "anthropic-ratelimit-requests-remaining": "5",
        "location": "https://x",
        "retry-after": "1",
    }
    async with gateway_before(replies(200, {"usage": START}, headers)) as (house, _):
        response = await post(house, house.grant(), request())
        assert set(response.headers) == {
            "content-type",
            "content-length",
            "anthropic-ratelimit-requests-remaining",
            "retry-after",
        }


async def test_x01_a_key_that_the_upstream_echoes_is_struck_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Row X01: no secret in the sandbox, the record, the ledger or the log."""
    body = {"type": "error", "error": {"type": "authentication_error", "message": f"bad key {CANARY}"}}
    async with gateway_before(replies(401, body)) as (house, _):
        grant = house.grant()
        token = grant.token
        with structlog.testing.capture_logs() as logs:
            response = await post(house, grant)
        for text in (response.text, repr(response.headers), repr(grant), repr(house.ledger.entries), repr(logs)):
            assert CANARY not in text
            assert token not in text
    printed = capsys.readouterr()
    assert CANARY not in printed.out + printed.err


async def test_the_gateway_prints_nothing_to_stdout_and_leaves_signals_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """Stdout is the wire of an MCP server."""
    import signal

    before = signal.getsignal(signal.SIGTERM), logging.getLogger("uvicorn.error").level
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    try:
        async with gateway_before(streams(WHOLE)) as (house, _):
            assert signal.getsignal(signal.SIGTERM) is before[0]
            await post(house, house.grant())
    finally:
        structlog.reset_defaults()
    assert capfd.readouterr().out == ""
    assert logging.getLogger("uvicorn.error").level == before[1]


def settings(**values: Any) -> Settings:
    none = dict.fromkeys(("anthropic_api_key", "anthropic_auth_token", "claude_code_oauth_token"))
    return Settings(**{**none, "anthropic_base_url": "https://api.anthropic.com", **values})


@pytest.mark.parametrize(
    ("given", "header", "value"),
    [
        ({"anthropic_api_key": CANARY}, "x-api-key", CANARY),
        ({"anthropic_auth_token": CANARY}, "authorization", f"Bearer {CANARY}"),
        ({"claude_code_oauth_token": CANARY}, "authorization", f"Bearer {CANARY}"),
    ],
)
async def test_each_kind_of_credential_goes_upstream_in_its_own_header(
    given: dict[str, str], header: str, value: str
) -> None:
    async with gateway_before(streams(WHOLE)) as (_, fake), serving(fake) as path:
        upstream = Upstream("http://upstream.test", credential=lambda: credential_of(settings(**given)), socket=path)
        async with open_gateway(upstream) as house:
            await post(house, house.grant())
        [seen] = fake.seen
        assert seen.headers[header] == value
        assert {"x-api-key", "authorization"} & seen.headers.keys() == {header}
        assert (OAUTH_BETA in seen.headers.get("anthropic-beta", "")) is ("claude_code_oauth_token" in given)


async def test_a_rotated_credential_is_used_from_the_next_request_on() -> None:
    keys = iter(["first-key", "second-key"])
    async with gateway_before(streams(WHOLE)) as (_, fake), serving(fake) as path:
        upstream = Upstream(
            "http://upstream.test", lambda: credential_of(settings(anthropic_api_key=next(keys))), socket=path
        )
        async with open_gateway(upstream) as house:
            await post(house, house.grant())
            await post(house, house.grant())
        assert [seen.headers["x-api-key"] for seen in fake.seen] == ["first-key", "second-key"]


async def test_a_credential_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "credential"
    supplier = anthropic_upstream(settings(credential_file=path, anthropic_api_key="from-variable")).credential

    def present() -> tuple[str, str]:
        credential = supplier()
        assert credential is not None
        return credential.header, credential.secret

    assert present() == ("x-api-key", "from-variable")
    path.write_text("# rotated daily\nexport ANTHROPIC_API_KEY='first'\n")
    assert present() == ("x-api-key", "first")
    path.write_text("ANTHROPIC_AUTH_TOKEN=second\nOTHER=x\n")
    assert present() == ("authorization", "second")
    path.write_bytes(b"\xff\xfe")
    assert present() == ("x-api-key", "from-variable")


async def test_x13_what_the_upstream_says_cannot_steer_a_terminal() -> None:
    """Row X13: control characters and escape sequences in an error's text."""
    text = "busy \x1b]52;c;ZXZpbA==\x07\x1b[2J\u202e\nforged line"
    body = {"type": "error", "error": {"type": "api_error", "message": text}}
    async with gateway_before(replies(500, body)) as (house, _):
        grant = house.grant()
        with structlog.testing.capture_logs() as logs:
            await post(house, grant)
        [failure] = grant.failures
        assert failure.message.isprintable()
        assert all(str(log.get("message", "")).isprintable() for log in logs)


async def test_a_base_url_may_have_a_path_of_its_own() -> None:
    async with gateway_before(streams(WHOLE)) as (_, fake), serving(fake) as path:
        async with open_gateway(Upstream("http://gateway.corp.test/anthropic/", socket=path)) as house:
            await post(house, house.grant())
        assert fake.seen[0].path == "/anthropic/v1/messages"
        assert fake.seen[0].headers["host"] == "gateway.corp.test"


async def test_without_a_credential_nothing_is_sent_and_the_remedy_is_named() -> None:
    async with open_gateway(anthropic_upstream(settings())) as house:
        with pytest.raises(RookeryError) as wanting:
            house.gateway.require_credential()
        assert wanting.value.code is ErrorCode.MODEL_AUTH_FAILED
        grant = house.grant()
        response = await post(house, grant)
        assert (response.status_code, response.headers["x-should-retry"]) == (401, "false")
        verdict = classify(grant.failures)
        assert verdict is not None
        assert verdict.code is ErrorCode.MODEL_AUTH_FAILED
        for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"):
            assert name in verdict.message


@pytest.mark.parametrize(
    "url", ["api.anthropic.com", "ftp://x", "https://user:pw@x.test", "https://x.test?key=1", "file:///etc/passwd"]
)
def test_a_base_url_that_cannot_be_meant_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(RookeryError) as refused:
        anthropic_upstream(settings(anthropic_base_url=url))
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    assert "pw" not in refused.value.message


async def test_the_scripted_upstream_serves_and_leaves_nothing_behind(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.json"
    scenario.write_text(json.dumps({"turns": [{"steps": [{"text": "from the file"}]}]}))
    async with scripted_upstream(settings(scenario=scenario), tmp_path) as upstream:
        assert upstream.socket is not None
        async with open_gateway(upstream) as house:
            assert "from the file" in (await post(house, house.grant())).text
    assert not upstream.socket.exists()
    with pytest.raises(RookeryError):
        async with scripted_upstream(settings(), tmp_path):
            raise RookeryError(ErrorCode.INTERNAL, "the caller's own error comes out as it is")


async def test_a_taken_socket_path_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    async with gateway_before(streams(WHOLE)) as (house, _):
        with unix_listener(path), pytest.raises(OSError, match="in use"):
            await house.gateway.serve(path)
        assert path.exists()
