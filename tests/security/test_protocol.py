"""Rows P02, P03, P10 and P11 at the standard streams and at subscriptions; HTTP, events and the daemon have theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import METHOD_NOT_FOUND, UNSUPPORTED_PROTOCOL_VERSION

from server.gateway.scripted import prompt_with
from server.requests import ListRequest
from tests.house import ME, open_house, run, say, settled
from tests.surface import INITIALIZE, ReadyBackend, Wire, connected, serving
from tools import subscriptions
from tools.addresses import SESSION
from tools.server import build_server

MISSING = "0" * 36


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with serving(tmp_path_factory.mktemp("home")) as served:
        served.initialize()
        yield served


def test_p02_ids_that_are_used_twice_cross_no_answers_and_unknown_methods_are_refused(wire: Wire) -> None:
    """Row P02: two calls in flight with one id, an id used again, a method that there is not; the server lives."""
    for tool, arguments in (("get_session", {"session_id": MISSING}), ("list_sessions", {})):
        wire.send("tools/call", {"name": tool, "arguments": arguments}, 7)
    wire.send("tools/call", {"name": "get_costs", "arguments": {}}, 8)
    answers: list[dict[str, Any]] = []
    while not answers or answers[-1].get("id") != 8:
        answers.append(wire.receive())
    assert "total" in answers[-1]["result"]["structuredContent"]
    for answer in answers[:-1]:
        assert answer["id"] == 7
        told = answer.get("error") or answer["result"]["structuredContent"]
        assert "total" not in told
    # What was late comes now, and the id is as good as any other once its call is over.
    late = wire.ask(9, "tools/list")
    assert late["result"]["tools"]
    assert wire.call(10, "list_sessions")["sessions"] == []
    assert wire.call(10, "list_sessions")["sessions"] == []
    assert wire.ask(11, "no/such/method")["error"]["code"] == METHOD_NOT_FOUND


def test_p10_an_unknown_version_of_the_handshake_is_negotiated(tmp_path: Path) -> None:
    """Row P10: the answer names a version that the server speaks, and that one is spoken from then on."""
    with serving(tmp_path) as served:
        answer = served.ask(1, "initialize", {**INITIALIZE, "protocolVersion": "1900-01-01"})
        assert answer["result"]["protocolVersion"] == "2025-11-25"
        served.send("notifications/initialized")
        assert served.ask(2, "tools/list")["result"]["tools"]


def test_p10_an_unknown_version_of_a_request_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    """Row P10: in the newer era each request names its version."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2999-12-31",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    }
    with serving(tmp_path) as served:
        error = served.ask(1, "server/discover", {"_meta": meta})["error"]
        assert error["code"] == UNSUPPORTED_PROTOCOL_VERSION
        assert "2026-07-28" in error["data"]["supported"]
        meta["io.modelcontextprotocol/protocolVersion"] = "2026-07-28"
        assert served.ask(2, "tools/list", {"_meta": meta})["result"]["tools"]


async def test_p03_a_spawn_that_is_cancelled_leaves_a_session_or_nothing(tmp_path: Path) -> None:
    """Row P03: whenever the caller gives up, there is no sandbox that no session knows."""
    async with open_house(tmp_path) as registry, connected(registry, "legacy") as client:
        for patience_s in (0.0, 0.01, 0.05, 0.2):
            with anyio.move_on_after(patience_s):
                await client.call_tool("spawn_agent", {"prompt": prompt_with([{"text": "done"}]), "wait_s": 30})
        # The server may still be at what was begun before its caller left.
        assert not (await client.call_tool("list_sessions", {})).is_error
        with anyio.fail_after(60):
            while any(one.state.is_busy for one in (await registry.list(ME, ListRequest())).sessions):
                await anyio.sleep(0.05)
        known = {one.session_id for one in (await registry.list(ME, ListRequest())).sessions}
        assert {path.name for path in (tmp_path / "sandboxes").iterdir() if path.is_dir()} <= known


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_p11_a_subscriber_that_does_not_read_is_told_no_more_and_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row P11: one client never takes its notices; the other hears of every change."""
    monkeypatch.setattr(subscriptions, "PAUSE_S", 0.05)
    monkeypatch.setattr(subscriptions, "POLL_S", 0.1)
    monkeypatch.setattr(subscriptions, "SEND_S", 0.2)
    heard = 0

    async def listen(message: Any) -> None:
        nonlocal heard
        heard += 1

    async def stick(message: Any) -> None:
        await anyio.sleep_forever()

    async with open_house(tmp_path) as registry:
        session_id = (await run(registry, [{"text": "first"}])).session_id
        server = build_server(ReadyBackend(registry))
        async with (
            Client(server, mode="legacy", message_handler=stick) as stuck,
            Client(server, mode="legacy", message_handler=listen) as reader,
        ):
            for client in (stuck, reader):
                await client.session.subscribe_resource(SESSION.format(session_id=session_id))
            for _ in range(3):
                before = heard
                await say(registry, session_id, [{"text": "next"}])
                await settled(registry, session_id)
                with anyio.fail_after(60):
                    while heard == before:
                        await anyio.sleep(0.02)
