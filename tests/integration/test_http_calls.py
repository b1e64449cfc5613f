"""Calls over HTTP that are given up: before, in the midst and after; what is slow; and what the others notice of it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn
from mcp import Client
from starlette.types import Message, Receive, Scope, Send

from rookery.web.addresses import Address, Names
from rookery.web.guard import Guard
from rookery.web.protocol import ClientProtocol
from server import http_protocol
from server.gateway.scripted import prompt_with
from tests.house import bash
from tests.http import PROTOCOL, Site, call, initialize, post

WAITING = "touch begun; until [ -e go ]; do sleep 0.05; done; echo done > done"
SLOW = prompt_with([bash(WAITING), {"text": "finished"}])


def request(tool: str, arguments: dict[str, Any]) -> bytes:
    """A tool call of the newer era, as it goes over the wire."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": PROTOCOL,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    body = json.dumps({**message, "params": {"name": tool, "arguments": arguments, "_meta": meta}}).encode()
    head = (
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        "accept: application/json, text/event-stream\r\n"
        f"mcp-protocol-version: {PROTOCOL}\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def test_p04_a_client_that_goes_away_in_mid_call_leaves_its_agent_at_work(site: Site, home: Path) -> None:
    """P03, P04: the connection breaks in a spawn; the session is there, works on, and its outcome is had later."""
    arguments = {"prompt": SLOW, "wait_s": 50, "request_id": "once", "title": "mid-call"}
    known = set((home / "sandboxes").glob("*/workspace/begun"))
    with socket.create_connection(("127.0.0.1", site.port)) as leaving:
        leaving.sendall(request("spawn_agent", arguments))
        while not (begun := list(set((home / "sandboxes").glob("*/workspace/begun")) - known)):
            time.sleep(0.05)
    # The same request again, as a client does that does not know what became of the first: no second agent.
    again = call(site, "spawn_agent", {**arguments, "wait_s": 0})
    assert again["state"] == "running"
    titles = [one["title"] for one in call(site, "list_sessions", {"limit": 200})["sessions"]]
    assert titles.count("mid-call") == 1
    begun[0].with_name("go").touch()
    (outcome,) = call(site, "wait_for_sessions", {"session_ids": [again["session_id"]]})["outcomes"]
    assert (outcome["stop_reason"], outcome["text"]) == ("end_turn", "finished")
    call(site, "end_session", {"session_id": again["session_id"]})


def test_p03_a_request_that_is_cut_off_before_its_end_starts_nothing(site: Site) -> None:
    """P03: cancelled before it began; half a body is no request."""
    before = len(call(site, "list_sessions", {"limit": 200})["sessions"])
    whole = request("spawn_agent", {"prompt": SLOW})
    for part in (whole[:40], whole[:-200], whole[:-1]):
        with socket.create_connection(("127.0.0.1", site.port)) as leaving:
            leaving.sendall(part)
    assert len(call(site, "list_sessions", {"limit": 200})["sessions"]) == before


def test_p03_a_cancellation_stops_the_waiting_and_nothing_else(site: Site, home: Path) -> None:
    """P03: in the older era by a notification: in mid-call, before the request, and after its end."""
    opened = post(site, initialize())
    mine = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}

    def cancel(request_id: int) -> int:
        params = {"requestId": request_id, "reason": "enough"}
        notification = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        return post(site, notification, **mine).status_code

    post(site, {"jsonrpc": "2.0", "method": "notifications/initialized"}, **mine)
    assert cancel(5) == 202
    session_id = call(site, "spawn_agent", {"prompt": SLOW, "wait_s": 0})["session_id"]
    arguments = {"session_ids": [session_id], "wait_s": 50}
    ask = {"jsonrpc": "2.0", "id": 5, "method": "tools/call"}
    body = json.dumps({**ask, "params": {"name": "wait_for_sessions", "arguments": arguments}}).encode()
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as waiting:
        head = "".join(f"{name}: {value}\r\n" for name, value in mine.items())
        waiting.sendall(
            f"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{head}"
            f"accept: application/json, text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert waiting.recv(4096).startswith(b"HTTP/1.1 200")
        assert cancel(5) == 202
    assert cancel(5) == 202
    view = call(site, "get_session", {"session_id": session_id})
    assert view["outcome"]["state"] in ("starting", "running")
    workspace = home / "sandboxes" / session_id / "workspace"
    (workspace / "go").touch()
    (outcome,) = call(site, "wait_for_sessions", {"session_ids": [session_id]})["outcomes"]
    assert outcome["stop_reason"] == "end_turn"


def test_a_client_that_offers_http_2_is_served(site: Site) -> None:
    """As Java's own does with each request in plain HTTP."""
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAEAAEAAAAIAAAAB"}
    opened = post(site, initialize(), **offer)
    assert opened.status_code == 200, opened.text
    assert "rookery" in opened.text


async def test_p02_odd_request_ids_get_their_own_answers(site: Site) -> None:
    """P02, P08: many calls at once over one client, of which some are the same."""
    answers: list[Any] = []

    async def ask(client: Client, limit: int) -> None:
        result = await client.call_tool("list_sessions", {"limit": limit})
        answers.append((limit, result.is_error))

    with anyio.fail_after(60):
        async with Client(site.url, mode="legacy") as client, anyio.create_task_group() as tasks:
            for limit in (1, 2, 0, 1, -1, 3):
                tasks.start_soon(ask, client, limit)
    assert sorted(answers) == [(-1, True), (0, True), (1, False), (1, False), (2, False), (3, False)]


async def test_p11_a_body_that_trickles_is_refused_and_costs_the_application_nothing() -> None:
    """P11: the time between two parts of a body is bounded; a body that comes in time is not touched."""
    seen: list[str] = []

    async def application(_scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass
        seen.append(message["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    names = Names.of(Address.parse("127.0.0.1:80"), None, ())
    guard = Guard(application, names, body_timeout_s=0.05)
    scope: Scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": [(b"host", b"localhost")]}
    for parts, status in (([True, False], 200), ([True], 408)):
        left = list(parts)
        statuses: list[int] = []

        async def receive(left: list[bool] = left) -> Message:
            if not left:
                await anyio.sleep_forever()
            return {"type": "http.request", "body": b"x", "more_body": left.pop(0)}

        async def send(message: Message, statuses: list[int] = statuses) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await guard(scope, receive, send)
        assert statuses == [status]
    assert seen == ["http.request", "http.disconnect"]


@pytest.mark.slow
async def test_p11_a_head_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """P11: before the first request and before a later one of the same connection; an answer may take its time."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)

    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        await anyio.sleep(0.5)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    server = uvicorn.Server(
        uvicorn.Config(application, http=ClientProtocol, log_config=None, lifespan="off", timeout_keep_alive=1)
    )
    listener = socket.create_server(("127.0.0.1", 0))
    whole = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            for sent, answered in ((b"", b""), (b"GET / HT", b""), (whole, b"ok"), (whole + b"GET / HT", b"ok")):
                stream = await anyio.connect_tcp("127.0.0.1", listener.getsockname()[1])
                async with stream:
                    await stream.send(sent)
                    got = b""
                    with pytest.raises(anyio.EndOfStream):
                        while True:
                            got += await stream.receive()
                    assert got.endswith(answered), sent
            server.should_exit = True
