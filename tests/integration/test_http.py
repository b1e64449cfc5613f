"""``rookery serve --http`` as a process: both eras, names and origins, hostile requests, an end in order."""

from __future__ import annotations

import signal
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp import Client

from rookery.serving.http import objection
from rookery.web.addresses import Address
from server.gateway.scripted import prompt_with
from tests.house import bash, settings_for
from tests.http import ACCEPT, Site, call, initialize, post, refused, serving_http
from tests.surface import ERAS, Era, ProgressLog, alive, answer_of

HOLD = prompt_with([bash("echo held > held; sleep 600")])
SAY = prompt_with([{"text": "said"}])


def test_p09_nothing_but_the_loopback_is_served_without_authentication(tmp_path: Path) -> None:
    """P09: an unauthenticated bind to other addresses is refused."""
    assert "loopback" in refused(tmp_path, "0.0.0.0:0")
    for host in ("[::]", "192.0.2.1", "example.com", "[2001:db8::1]"):
        assert "loopback" in (objection(settings_for(tmp_path), Address.parse(f"{host}:80")) or ""), host
    for address in ("127.0.0.1:0", "[::1]:0", "localhost:0", "127.8.8.8:0", "unix:/run/socket"):
        assert objection(settings_for(tmp_path), Address.parse(address)) is None


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_over_http_spawns_and_the_server_ends_with_its_agents(tmp_path: Path, era: Era) -> None:
    with serving_http(tmp_path) as site:
        progress = ProgressLog()
        with anyio.fail_after(60):
            async with Client(site.url, mode=era) as client:
                result = await client.call_tool("spawn_agent", {"prompt": SAY}, progress_callback=progress)
                assert answer_of(result)["text"] == "said"
                assert progress.numbers
                held = answer_of(await client.call_tool("spawn_agent", {"prompt": HOLD, "wait_s": 0}))
                await file_made(tmp_path / "sandboxes" / held["session_id"] / "workspace" / "held")
        family = site.wire.descendants()
        site.wire.process.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(site.wire.wait) == 0
        assert not alive(family)


@pytest.mark.parametrize("era", ERAS)
async def test_clients_that_only_listen_do_not_keep_a_server_from_leaving(tmp_path: Path, era: Era) -> None:
    """Every client of the older era holds a stream open, and it may be long that agents get to finish."""
    with serving_http(tmp_path, ROOKERY_DRAIN_S="600") as site, anyio.fail_after(60):
        async with listening(site, era):
            site.wire.process.send_signal(signal.SIGTERM)
            assert await anyio.to_thread.run_sync(site.wire.wait) == 0


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_under_way_is_answered_while_the_server_leaves_though_its_clients_stream_has_ended(
    tmp_path: Path, era: Era
) -> None:
    with serving_http(tmp_path, ROOKERY_DRAIN_S="600") as site, anyio.fail_after(60):
        steps = [bash("touch begun; until [ -e go ]; do sleep 0.05; done"), {"text": "finished"}]
        async with listening(site, era) as client, anyio.create_task_group() as tasks:

            async def work() -> None:
                result = await client.call_tool("spawn_agent", {"prompt": prompt_with(steps), "wait_s": 50})
                assert answer_of(result)["text"] == "finished"

            tasks.start_soon(work)
            with anyio.fail_after(30):
                while not (begun := list(tmp_path.glob("sandboxes/*/workspace/begun"))):
                    await anyio.sleep(0.02)
            site.wire.process.send_signal(signal.SIGTERM)
            await closed(site)
            begun[0].with_name("go").touch()
        assert await anyio.to_thread.run_sync(site.wire.wait) == 0


@asynccontextmanager
async def listening(site: Site, era: Era) -> AsyncIterator[Client]:
    """A client that listens to changes, on the stream that its era has for that."""
    async with Client(site.url, mode=era) as client:
        # The SDK's client asks for them after a call that it knows no tool of, when it may be too late.
        await client.list_tools()
        if era == "legacy":
            yield client
            return
        async with client.listen(resources_list_changed=True):
            yield client


async def closed(site: Site) -> None:
    """Wait until a server takes no more connections."""
    with anyio.fail_after(30):
        while True:
            try:
                stream = await anyio.connect_tcp("127.0.0.1", site.port)
            except OSError:
                return
            await stream.aclose()
            await anyio.sleep(0.02)


async def file_made(path: Path) -> None:
    with anyio.fail_after(30):
        while not path.exists():
            await anyio.sleep(0.02)


@pytest.mark.parametrize("path", ["/mcp", "/v1/sessions/x/events", "/nowhere"])
def test_p06_a_rebound_name_and_a_foreign_origin_are_refused(site: Site, path: str) -> None:
    """P06: Host and Origin are checked on every request, whatever its path."""
    with httpx2.Client(trust_env=False, base_url=site.root) as browser:
        for host in ("evil.example", f"evil.example:{site.port}", "127.0.0.1.evil.example", "localhost:1@evil", ""):
            assert browser.post(path, json=initialize(), headers={**ACCEPT, "host": host}).status_code == 421, host
        for origin in ("http://evil.example", "null", "https://localhost", "http://localhost.evil.example", "file://"):
            response = browser.post(path, json=initialize(), headers={**ACCEPT, "origin": origin})
            assert response.status_code == 403, origin
        for host, origin in (("localhost:9", "http://localhost:3000"), ("127.0.0.1", "http://127.0.0.1")):
            headers = {**ACCEPT, "host": host, "origin": origin}
            assert browser.post(path, json=initialize(), headers=headers).status_code in (200, 404, 405), host


def test_supervisors_learn_whether_it_lives_and_whether_it_takes_work(site: Site) -> None:
    assert "sessions" in call(site, "list_sessions", {})
    with httpx2.Client(trust_env=False, base_url=site.root) as supervisor:
        for path in ("/healthz", "/readyz"):
            assert supervisor.get(path, headers={"host": "10.1.2.3:8930"}).text == "ok\n"


def test_p01_hostile_bodies_get_an_error_and_the_server_lives(site: Site) -> None:
    """P01: a 50 MB body, deep nesting, invalid UTF-8, NaN; P02: odd ids and batches, in both eras."""
    bodies: list[tuple[bytes, set[int]]] = [
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"' + b"x" * 50_000_000 + b'"}}', {413}),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 200_000 + b"]" * 200_000 + b"}", {400}),
        (b"{garbage", {400}),
        (b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}', {400}),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', {400}),
        (b'{"jsonrpc":"2.0","id":null,"method":"tools/list"}', {202, 400, 404}),
        (b'{"jsonrpc":"1.0","id":1,"method":"tools/list"}', {400}),
        (b"", {400}),
    ]
    before = site.wire.memory_peak_kib()
    with httpx2.Client(trust_env=False, timeout=60) as client:
        for era in ({}, {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/list"}):
            for body, statuses in bodies:
                headers = {**ACCEPT, "content-type": "application/json", **era}
                try:
                    status = client.post(site.url, content=body, headers=headers).status_code
                except httpx2.WriteError:
                    status = 413  # it was cut off in the midst
                assert status in statuses, (body[:60], era, status)
    assert site.wire.memory_peak_kib() - before < 128 << 10
    assert "sessions" in call(site, "list_sessions", {})


def test_p10_an_unknown_protocol_version_is_refused_with_those_that_are_known(site: Site) -> None:
    """P10: a typed refusal in the newer era, and negotiation in the older one."""
    asked = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/list",
        "params": {
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2099-01-01",
                "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            }
        },
    }
    response = post(site, asked, **{"mcp-protocol-version": "2099-01-01", "mcp-method": "tools/list"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == -32022
    assert "2026-07-28" in str(response.json()["error"]["data"])
    older = initialize()
    older["params"] = {**older["params"], "protocolVersion": "1999-01-01"}
    assert '"protocolVersion":"2025-11-25"' in post(site, older).text.replace(" ", "")


def test_a_unix_socket_is_for_its_user_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # a stale one of a server that was killed
    with serving_http(tmp_path / "home", f"unix:{path}") as site:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
            assert client.get("/healthz").text == "ok\n"
            assert client.post("/mcp", json=initialize(), headers=ACCEPT).status_code == 200
            assert client.post("/mcp", json=initialize(), headers={**ACCEPT, "host": "evil"}).status_code == 421
        with pytest.raises(FileExistsError), Address.parse(f"unix:{path}").listening():
            pass
        site.wire.process.send_signal(signal.SIGTERM)
        assert site.wire.wait() == 0
    assert not path.exists()
