"""What a hostile sandbox may send to the gateway, and what of it goes upstream (rows X04 to X07, G01, G02)."""

from __future__ import annotations

import json
import socket as sockets
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from server.errors import ErrorCode, RookeryError
from server.gateway import classify
from server.gateway.grants import Terms
from tests.gateways import (
    CANARY,
    MODEL,
    PATIENCE_S,
    FakeUpstream,
    GrantTerms,
    House,
    gateway_before,
    replies,
    request,
)

ANSWER = {"model": MODEL, "usage": {"input_tokens": 1, "output_tokens": 1}, "content": []}

ALLOWED_UPSTREAM = {
    "accept",
    "accept-encoding",
    "anthropic-beta",
    "anthropic-version",
    "connection",
    "content-length",
    "content-type",
    "host",
    "user-agent",
    "x-api-key",
    "x-stainless-retry-count",
}


async def raw(path: Path, data: bytes) -> bytes:
    """Send bytes as they are; everything that comes back."""
    with anyio.fail_after(PATIENCE_S):
        async with await anyio.connect_unix(str(path)) as stream:
            answer = b""
            try:
                await stream.send(data)
                while b"\r\n\r\n" not in answer or not _whole(answer):
                    answer += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass
            return answer


def _whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
    return length is not None and len(body) >= int(length.split(b":")[1])


def message(token: str, body: bytes, *lines: str, target: str = "/v1/messages", method: str = "POST") -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: gateway", f"x-api-key: {token}", *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


async def asked(house: House, fake: FakeUpstream, body: dict[str, Any], **options: Any) -> Any:
    """Send a request; the body as the upstream got it."""
    grant = house.grant(server_tools=options.pop("server_tools", ()))
    async with house.client(grant.token, **options.pop("headers", {})) as client:
        response = await client.post("/v1/messages", json=body)
        assert response.status_code == 200, response.text
    return fake.seen[-1].json


async def test_x04_whatever_auth_the_sandbox_sends_is_replaced_by_ours() -> None:
    """Row X04: the attacker's own key would send the user's data to the attacker's account."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        token = house.grant().token
        body = json.dumps(request()).encode()
        length = f"content-length: {len(body)}"
        foreign = ("authorization: Bearer sk-ant-attacker", "x-goog-api-key: attacker", "cookie: a=attacker")
        answer = await raw(house.socket, message(token, body, length, *foreign))
        assert answer.startswith(b"HTTP/1.1 200")
        [seen] = fake.seen
        assert seen.headers["x-api-key"] == CANARY
        assert "attacker" not in repr(seen)
        assert token not in repr(seen)


@pytest.mark.parametrize("scheme", ["x-api-key", "authorization"])
async def test_x04_a_foreign_key_is_no_token(scheme: str) -> None:
    """Row X04: only a token of ours opens the gateway."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        value = "sk-ant-attacker" if scheme == "x-api-key" else "Bearer sk-ant-attacker"
        async with house.client("", **{scheme: value}) as client:
            response = await client.post("/v1/messages", json=request())
        assert response.status_code == 401
        assert response.headers["x-should-retry"] == "false"
        assert not fake.seen


@pytest.mark.parametrize(
    "target",
    [
        "/v1/files",
        "/v1/messages/batches",
        "/v1/organizations/me",
        "/v1/skills",
        "/v1/complete",
        "/",
        "//v1/messages",
        "/v1//messages",
        "/v1/./messages",
        "/v1/files/../messages",
        "/v1/messages/../files",
        "/v1/messages/",
        "/v1/messages/count_tokens/..",
        "/v1/%6dessages",
        "/v1/messages%2f..%2ffiles",
        "/v1/messages%00",
        "/v1/messages;x=1",
        "/V1/messages",
        "/v1/messages?beta=true&x=/v1/files",
        "/v1/messages?beta=false",
        "/v1/models/../files",
        "http://attacker.test/v1/messages",
        "https://api.anthropic.com/v1/files",
    ],
)
async def test_x05_only_the_exact_paths_of_the_model_are_served(target: str) -> None:
    """Row X05: other endpoints (files, batches, organisations) and every other way to write a path."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        token = house.grant().token
        body = json.dumps(request()).encode()
        answer = await raw(house.socket, message(token, body, f"content-length: {len(body)}", target=target))
        assert answer.startswith(b"HTTP/1.1 404"), answer
        assert b"not_found_error" in answer
        assert not fake.seen


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/messages"), ("DELETE", "/v1/messages"), ("POST", "/v1/models"), ("CONNECT", "/v1/messages")],
)
async def test_x05_only_the_fitting_method_is_served(method: str, path: str) -> None:
    """Row X05."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        answer = await raw(house.socket, message(house.grant().token, b"", target=path, method=method))
        assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
        assert not fake.seen


CLIENT_TOOL = {"name": "Bash", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "web_fetch_20250910", "name": "web_fetch"},
        {"type": "code_execution_20250825", "name": "code_execution"},
        {"type": "mcp_toolset", "mcp_server_name": "evil"},
        {"type": "advisor_20260301", "name": "advisor"},
        {"type": "something_of_next_year", "name": "x"},
        {"type": ["web_search_20250305"], "name": "web_search"},
        "web_search",
    ],
)
async def test_x06_tools_that_the_provider_runs_are_taken_out(tool: Any) -> None:
    """Row X06: server tools reach the network from outside the sandbox."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        body = await asked(house, fake, request(tools=[CLIENT_TOOL, tool]))
        assert body["tools"] == [CLIENT_TOOL]


async def test_x06_a_request_for_nothing_but_a_server_tool_is_refused() -> None:
    """Row X06: what is left would not be what was asked."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        grant = house.grant()
        search = {"type": "web_search_20250305", "name": "web_search"}
        async with house.client(grant.token) as client:
            alone = await client.post("/v1/messages", json=request(tools=[search]))
            choice = {"type": "tool", "name": "web_search"}
            forced = await client.post("/v1/messages", json=request(tools=[CLIENT_TOOL, search], tool_choice=choice))
        for response in (alone, forced):
            assert response.status_code == 403
            assert response.headers["x-should-retry"] == "false"
            assert "web_search" in response.json()["error"]["message"]
        assert not fake.seen
        assert not house.ledger.entries


@pytest.mark.parametrize(
    ("fields", "gone"),
    [
        ({"mcp_servers": [{"type": "url", "url": "https://evil.test", "name": "evil"}]}, "evil"),
        ({"container": "container_1"}, "container"),
        ({"speed": "fast"}, "speed"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"fallbacks": [{"model": "claude-other"}]}, "fallbacks"),
        ({"field_of_next_year": {"fetch": "https://evil.test"}}, "evil"),
    ],
)
async def test_x06_fields_that_reach_out_or_cost_more_are_taken_out(fields: dict[str, Any], gone: str) -> None:
    """Row X06."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        body = await asked(house, fake, request(**fields))
        assert gone not in json.dumps(body)


URL_IMAGE = {"type": "image", "source": {"type": "url", "url": "https://evil.test/?q=secret"}}


@pytest.mark.parametrize(
    "content",
    [
        [URL_IMAGE],
        [{"type": "document", "source": {"type": "url", "url": "https://evil.test/x.pdf"}}],
        [{"type": "image", "source": {"type": "file", "file_id": "evil"}}],
        [{"type": "image", "source": {"type": "novel", "at": "evil"}}],
        [{"type": "image", "source": "https://evil.test"}],
        [{"type": "container_upload", "file_id": "evil"}],
        [{"type": "tool_result", "tool_use_id": "t", "content": [URL_IMAGE]}],
        [{"type": "document", "source": {"type": "content", "content": [URL_IMAGE]}}],
        [{"type": "server_tool_use", "id": "s", "name": "web_fetch", "input": {"url": "https://evil.test"}}],
        [{"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {"type": "web_fetch_evil"}}}],
        [{"type": "tool_addition", "tool": {"type": "web_fetch_evil"}}],
        [{"type": "tool_definition", "definition": {"type": "web_search_evil"}}],
        [{"type": "compaction", "tool_changes": [{"type": "tool_addition", "tool": {"type": "web_fetch_evil"}}]}],
        [{"type": "block_of_next_year", "url": "https://evil.test"}],
        [{"type": 7, "url": "https://evil.test"}],
    ],
)
@pytest.mark.parametrize("role", ["user", "system"])
async def test_x06_content_that_the_provider_would_fetch_becomes_a_note(content: list[Any], role: str) -> None:
    """Row X06: URL and file sources, server tools hidden in messages, unknown blocks."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        text = {"type": "text", "text": "look"}
        body = await asked(house, fake, request() | {"messages": [{"role": role, "content": [text, *content]}]})
        assert "evil" not in json.dumps(body)
        assert "removed by the gateway" in json.dumps(body)
        assert body["messages"][0]["content"][0] == text


async def test_x06_ordinary_content_passes_unchanged() -> None:
    """Row X06, the other side: nothing that an agent needs is lost."""
    png = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}
    tool = CLIENT_TOOL | {"defer_loading": True, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = {
        "model": MODEL,
        "max_tokens": 32000,
        "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "sché \U0001f916"}, png]},
            {
                "role": "system",
                "content": [{"type": "tool_addition", "tool": {"type": "tool_reference", "name": "Bash"}}],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                    {"type": "tool_use", "id": "t", "name": "Bash", "input": {"source": {"type": "url", "url": "x"}}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [png]}]},
        ],
        "tools": [tool, {"type": "custom", "name": "Read"}, {"type": "bash_20250124", "name": "bash"}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "metadata": {"user_id": "u"},
        "stream": False,
        "temperature": 1,
    }
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        assert await asked(house, fake, body) == body


async def test_x06_a_policy_can_allow_a_feature_with_all_that_belongs_to_it() -> None:
    """Row X06: stripped or denied *by policy*."""
    search = {"type": "web_search_20250305", "name": "web_search"}
    used = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}}
    fields = request(tools=[search]) | {"messages": [{"role": "assistant", "content": [used, URL_IMAGE]}]}
    headers = {"anthropic-beta": "web-search-2025-03-05,files-api-2025-04-14"}
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        body = await asked(house, fake, fields, server_tools=["web_search"], headers=headers)
        assert body["tools"] == [search]
        assert body["messages"][0]["content"][0] == used
        assert "evil" not in json.dumps(body)
        assert fake.seen[-1].headers["anthropic-beta"] == "web-search-2025-03-05"


async def test_x06_betas_are_filtered_not_dropped() -> None:
    """Row X06: an ``anthropic-beta`` that enables what the policy does not allow."""
    kept = ["claude-code-20250219", "interleaved-thinking-2025-05-14", "context-management-2025-06-27"]
    bad = [
        "files-api-2025-04-14",
        "mcp-client-2025-04-04",
        "code-execution-2025-08-25",
        "skills-2025-10-02",
        "web-fetch-2025-09-10",
        "oauth-2025-04-20",
        "fast-mode-2026-02-01",
        "x\u00e9y",
        "UPPER",
        "a b",
    ]
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        token = house.grant().token
        body = json.dumps(request()).encode()
        value = ", ".join([*kept, *bad, kept[0]])
        lines = (f"content-length: {len(body)}", f"anthropic-beta: {value}", "anthropic-beta: effort-2025-11-24")
        await raw(house.socket, message(token, body, *lines).replace("é".encode(), b"\xe9"))
        assert fake.seen[-1].headers["anthropic-beta"] == ",".join([*kept, "effort-2025-11-24"])


@pytest.mark.parametrize(
    "lines",
    [
        ("transfer-encoding: chunked", "content-length: 5"),
        ("content-length: 5", "content-length: 6"),
        ("content-length: -1",),
        ("content-length: 5x",),
        ("transfer-encoding: chunked, identity",),
        ("transfer-encoding: gzip",),
        ("connection: upgrade", "upgrade: h2c", "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA", "content-length: 0"),
        ("content-encoding: gzip", "content-length: 5"),
        ("content length: 5",),
        ("x-api-key : second", "content-length: 0"),
    ],
)
async def test_g01_a_head_that_can_be_read_in_two_ways_is_refused(lines: tuple[str, ...]) -> None:
    """Row G01: request smuggling, duplicate lengths, upgrades."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        smuggled = b"0\r\n\r\nPOST /v1/files HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await raw(house.socket, message(house.grant().token, smuggled, *lines))
        assert not answer.startswith(b"HTTP/1.1 200")
        assert not fake.seen


async def test_g01_only_allowed_headers_go_upstream_with_a_host_of_ours() -> None:
    """Row G01: Host override, hop-by-hop headers, anything else that a proxy on the way might act on."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        body = json.dumps(request()).encode()
        lines = (
            f"content-length: {len(body)}",
            "connection: x-api-key, keep-alive",
            "x-forwarded-host: evil.test",
            "x-http-method-override: DELETE",
            "x-original-url: /v1/files",
            "proxy-authorization: Basic ZXZpbA==",
            "te: trailers",
            "anthropic-version: 2023-06-01\x00evil",
            "x-stainless-retry-count: 2",
        )
        await raw(house.socket, message(house.grant().token, body, *lines[:7], lines[8]))
        [seen] = fake.seen
        assert set(seen.headers) <= ALLOWED_UPSTREAM
        assert seen.headers["host"] == "upstream.test"
        assert seen.headers["accept-encoding"] == "identity"
        assert seen.headers["x-stainless-retry-count"] == "2"
        answer = await raw(house.socket, message(house.grant().token, body, lines[0], lines[7]))
        assert not answer.startswith(b"HTTP/1.1 200")
        assert len(fake.seen) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"model": "a", "max_tokens": NaN}',
        b'{"model": ' + b"[" * 100_000,
        b'{"model": "a b"}',
        b'{"model": ["a"]}',
        b'{"max_tokens": 1}',
        b'{"model": "a", "n": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe{}",
        b'{"model": "a", "messages": [{"role": "user", "content": ' + b'[{"content":' * 60 + b"1" + b"}]" * 60 + b"}]}",
    ],
)
async def test_g01_a_body_that_another_parser_could_read_otherwise_is_refused(body: bytes) -> None:
    """Row G01: the request is built anew from what was parsed; what cannot be parsed for sure goes nowhere."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        answer = await raw(house.socket, message(house.grant().token, body, f"content-length: {len(body)}"))
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"x-should-retry: false" in answer
        assert not fake.seen


async def test_g01_of_a_key_that_comes_twice_one_value_is_checked_and_only_that_one_sent() -> None:
    """Row G01: two parsers could read two different bodies; there is only one body upstream."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        evil = b'"tools": [{"type": "web_search_20250305", "name": "web_search"}]'
        kept = b'"tools": [{"name": "Bash"}]'
        for first, second in ((evil, kept), (kept, evil)):
            body = b'{"model": "a", "messages": [], ' + first + b", " + second + b"}"
            await raw(house.socket, message(house.grant().token, body, f"content-length: {len(body)}"))
        [seen] = fake.seen
        assert seen.json["tools"] == [{"name": "Bash"}]
        assert b"web_search" not in seen.body


@pytest.mark.parametrize("number", ["1e400", "-1e400"])
async def test_g01_a_number_beyond_all_bounds_does_no_harm(number: str) -> None:
    """Row G01: what one parser reads as infinity, another refuses."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        body = json.dumps(request()).replace("100", number).encode()
        answer = await raw(house.socket, message(house.grant().token, body, f"content-length: {len(body)}"))
        assert answer.startswith(b"HTTP/1.1 200")
        assert fake.seen[0].json["max_tokens"] is None


async def test_g02_a_body_over_the_limit_is_refused_by_its_announced_length() -> None:
    """Row G02: 200 MB body. Never 413, at which the CLI would throw its conversation away."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        answer = await raw(house.socket, message(house.grant().token, b"", "content-length: 209715200"))
        assert answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 429"))
        assert not fake.seen


async def test_g02_a_body_over_the_limit_is_refused_when_it_does_not_say_its_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row G02: chunked."""
    monkeypatch.setattr("server.gateway.requests.read_body.__defaults__", (1000,))
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        chunks = b"400\r\n" + b" " * 0x400 + b"\r\n"
        data = message(house.grant().token, chunks * 4, "transfer-encoding: chunked")
        assert (await raw(house.socket, data)).startswith(b"HTTP/1.1 403")
        assert not fake.seen


async def test_g02_a_body_that_comes_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row G02: slow-loris in the body."""
    monkeypatch.setattr("server.gateway.requests.BODY_TIMEOUT_S", 0.05)
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        answer = await raw(house.socket, message(house.grant().token, b"{", "content-length: 500"))
        assert answer.startswith(b"HTTP/1.1 408")
        assert not fake.seen


async def test_g02_a_connection_without_a_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row G02: slow-loris in the head."""
    monkeypatch.setattr("server.http_protocol.HEAD_TIMEOUT_S", 0.05)
    async with gateway_before(replies(200, ANSWER)) as (house, _):
        assert await raw(house.socket, b"POST /v1/messages HTTP/1.1\r\nHost: ga") == b""


@pytest.mark.parametrize("head", ["x: " + "y" * 200_000, "\r\n".join(f"h{n}: v" for n in range(100_000))])
async def test_g02_a_giant_head_is_refused(head: str) -> None:
    """Row G02: a million headers."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        answer = await raw(house.socket, message(house.grant().token, b"", head))
        assert not answer.startswith(b"HTTP/1.1 200")
        assert not fake.seen


@pytest.mark.parametrize(
    "flood",
    [
        b"1;" + b"x" * 200_000 + b"\r\n{\r\n0\r\n\r\n",
        b"0\r\n" + b"x-more: y\r\n" * 50_000 + b"\r\n",
        b"0\r\nx-more: " + b"y" * 500_000 + b"\r\n\r\n",
    ],
    ids=["an extension of a chunk", "trailers", "one trailer"],
)
async def test_g02_what_frames_a_body_is_bounded_by_the_body(flood: bytes) -> None:
    """Row G02: bytes beside head and body would be held in memory, or read for ever."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        answer = await raw(house.socket, message(house.grant().token, flood, "transfer-encoding: chunked"))
        assert not answer.startswith(b"HTTP/1.1 200")
        assert not fake.seen


async def test_g01_blanks_around_a_headers_value_are_none_of_it() -> None:
    """Row G01: RFC 9110, section 5.5."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        body = json.dumps(request()).encode()
        lines = (f"content-length: {len(body)}", "anthropic-version: \t 2024-01-02 \t ")
        answer = await raw(house.socket, message(house.grant().token + "  ", body, *lines))
        assert answer.startswith(b"HTTP/1.1 200")
        assert fake.seen[0].headers["anthropic-version"] == "2024-01-02"


async def test_g01_a_trailer_is_no_header() -> None:
    """Row G01: a request is judged by its head; what follows its body changes nothing."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        body = json.dumps(request()).encode()
        chunked = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\nanthropic-beta: context-1m-2025-08-07\r\n\r\n"
        answer = await raw(house.socket, message(house.grant().token, chunked, "transfer-encoding: chunked"))
        assert answer.startswith(b"HTTP/1.1 200")
        [seen] = fake.seen
        assert seen.json == request()
        assert "context-1m" not in seen.headers.get("anthropic-beta", "")


async def test_g02_one_sandbox_cannot_use_up_the_connections_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row G02: a flood of connections."""
    monkeypatch.setattr("server.gateway.connections.MAX_CONNECTIONS", 5)
    script = (
        "import socket, sys\n"
        "clients = [socket.socket(socket.AF_UNIX) for _ in range(40)]\n"
        "refused = 0\n"
        "for client in clients: client.connect(sys.argv[1])\n"
        "for client in clients:\n"
        "    try:\n"
        "        client.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "        refused += client.recv(100) == b''\n"
        "    except OSError: refused += 1\n"
        "print(refused)\n"
    )
    sandbox = ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent"]
    async with gateway_before(replies(200, ANSWER)) as (house, _):
        with anyio.fail_after(PATIENCE_S):
            inside = await anyio.run_process([*sandbox, sys.executable, "-c", script, str(house.socket)])
        assert int(inside.stdout) == 35
        async with house.client(house.grant().token) as client:
            assert (await client.post("/v1/messages", json=request())).status_code == 200


async def test_g02_connections_whose_maker_is_gone_do_not_get_around_the_bound() -> None:
    """Row G02: the kernel names the process that connected, and of one that is gone no sandbox can be told."""
    async with gateway_before(replies(200, ANSWER)) as (house, _):
        data = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        assert await answers_over_orphans(house, 100, data) == [b""] * 100
        async with house.client(house.grant().token) as client:
            assert (await client.post("/v1/messages", json=request())).status_code == 200


async def test_x07_a_token_is_of_no_use_on_a_connection_whose_maker_is_gone() -> None:
    """Row X07: replay from another sandbox that hides where it comes from."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        grant = house.grant()
        async with house.client(grant.token) as client:
            assert (await client.post("/v1/messages", json=request())).status_code == 200
        body = json.dumps(request()).encode()
        data = message(grant.token, body, f"content-length: {len(body)}")
        assert await answers_over_orphans(house, 1, data) == [b""]
        assert len(fake.seen) == 1


async def answers_over_orphans(house: House, count: int, data: bytes) -> list[bytes]:
    """How each of so many connections begins its answer, which a process made that was gone when they were taken.

    They come from a pid namespace of its own, as a sandbox has.
    """
    script = (
        "import json, os, socket, sys\n"
        "clients = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]\n"
        "if not (child := os.fork()):\n"
        "    for client in clients: client.connect(sys.argv[1])\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print('connected', flush=True)\n"
        "data, answers = sys.stdin.buffer.read(), []\n"
        "for client in clients:\n"
        "    try:\n"
        "        client.sendall(data)\n"
        "        answers.append(client.recv(12).decode())\n"
        "    except OSError: answers.append('')\n"
        "print(json.dumps(answers))\n"
    )
    sandbox = ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent"]
    command = [*sandbox, sys.executable, "-c", script, str(house.socket), str(count)]

    def connect() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"connected\n"
        return process

    # Not in a thread: so the gateway, which lives in this event loop, takes no connection while there is its maker.
    process = connect()
    with anyio.fail_after(PATIENCE_S):
        said, _ = await anyio.to_thread.run_sync(process.communicate, data)
    return [answer.encode() for answer in json.loads(said)]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_r25_a_model_that_the_policy_does_not_name_is_not_asked(path: str) -> None:
    """Row R25: whatever model a subagent or a program in the sandbox asks for, the policy's are all there is."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        grant = house.grant(model_allowed="claude-sonnet-*")
        async with house.client(grant.token) as client:
            for model in ("claude-opus-4-1", "CLAUDE-SONNET-4-5", "x-claude-sonnet-4-5"):
                response = await client.post(path, json=request(model=model))
                assert response.status_code == 403
                assert response.headers["x-should-retry"] == "false"
                assert model in response.json()["error"]["message"]
            assert not fake.seen
            assert (await client.post(path, json=request(model="claude-sonnet-4-5"))).status_code == 200
        if path == "/v1/messages":
            error = classify(grant.failures)
            assert error is not None
            assert error.code is ErrorCode.POLICY_DENIED


async def test_r23_no_request_passes_while_the_policy_cannot_be_read() -> None:
    """Row R23: fail closed, whatever goes wrong with the policy."""

    def unreadable() -> Terms:
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, "the file is broken")

    def broken() -> Terms:
        raise KeyError("a fault of ours")

    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        grant = house.grant()
        async with house.client(grant.token) as client:
            for terms, status in ((unreadable, 403), (broken, 500), (None, 403)):
                grant.terms = terms
                assert (await client.post("/v1/messages", json=request())).status_code == status
        assert not fake.seen


async def test_x07_a_token_works_for_its_life_only() -> None:
    """Row X07: replay before the session, after its end."""
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        grant = house.gateway.open_grant()
        token = grant.token
        async with house.client(token) as client:
            unbound = await client.post("/v1/messages", json=request())
            assert unbound.status_code == 403
            assert unbound.headers["x-should-retry"] == "false"
            grant.bind(session_id="s", root_id="s", principal="p")
            assert (await client.post("/v1/messages", json=request())).status_code == 403, "no policy, no request"
            grant.terms = GrantTerms
            assert (await client.post("/v1/messages", json=request())).status_code == 200
            grant.revoke()
            assert (await client.post("/v1/messages", json=request())).status_code == 401
        assert len(fake.seen) == 1


async def test_x07_a_token_is_of_no_use_in_another_sandbox() -> None:
    """Row X07: replay from elsewhere; the kernel says where a connection comes from."""
    script = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_UNIX) as client:\n"
        "    client.connect(sys.argv[1])\n"
        "    client.sendall(sys.stdin.buffer.read())\n"
        "    print(client.recv(100).decode())\n"
    )
    sandbox = ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent"]
    async with gateway_before(replies(200, ANSWER)) as (house, fake):
        grant = house.grant()
        body = json.dumps(request()).encode()
        data = message(grant.token, body, f"content-length: {len(body)}")
        command = [*sandbox, sys.executable, "-c", script, str(house.socket)]
        with anyio.fail_after(PATIENCE_S):
            inside = await anyio.run_process(command, input=data)
        assert inside.stdout.startswith(b"HTTP/1.1 200")
        assert (await raw(house.socket, data)).startswith(b"HTTP/1.1 401")
        assert len(fake.seen) == 1


async def test_x07_a_token_books_on_its_own_session_whatever_the_request_says() -> None:
    """Row X07: bound to one session."""
    async with gateway_before(replies(200, ANSWER)) as (house, _):
        one, other = house.grant("one"), house.grant("other")
        async with house.client(one.token, **{"x-claude-code-session-id": "other"}) as client:
            await client.post("/v1/messages", json=request(metadata={"user_id": "other"}))
        assert [entry.session_id for entry in house.ledger.entries] == ["one"]
        assert other.requests == 0


def test_the_socket_is_open_to_all_uids_and_guarded_by_its_directory(tmp_path: Path) -> None:
    from server.gateway.listener import unix_listener

    path = tmp_path / "s.sock"
    with unix_listener(path) as listener:
        assert listener.family == sockets.AF_UNIX
        assert path.stat().st_mode & 0o777 == 0o666
