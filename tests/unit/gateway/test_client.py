"""The client towards the upstream: real sockets, and upstreams that misbehave byte by byte."""

from __future__ import annotations

import gzip
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from server.errors import ErrorCode, RookeryError
from server.gateway import client as module
from server.gateway.client import BrokenOffError, SilentError, UnreachableError, open_client
from tests.gateways import FakeUpstream, replies, serving

PATIENCE_S = 30

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@asynccontextmanager
async def saying(*parts: bytes, stay: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Something on loopback that says these bytes to the first request it hears, and then hangs up or stays."""
    heard: list[bytes] = []

    async def connected(stream: SocketStream) -> None:
        async with stream:
            heard.append(await stream.receive())
            for part in parts:
                await stream.send(part)
            if stay:
                await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", family=socket.AF_INET)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, connected)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with anyio.fail_after(PATIENCE_S):
            yield port, heard
        tasks.cancel_scope.cancel()


async def asked(port: int) -> bytes:
    """The body of the answer to a request to a port of loopback."""
    url = f"http://127.0.0.1:{port}"
    async with open_client(url, None, trust_env=False) as client:
        answer = await client.send("POST", f"{url}/v1/messages", {}, b"{}")
        try:
            return b"".join([chunk async for chunk in answer.chunks()])
        finally:
            answer.close()


async def test_nothing_is_sent_but_what_was_given() -> None:
    fake = FakeUpstream(replies(200, b"{}", {"set-cookie": "a=b"}))
    async with serving(fake) as path, open_client("http://upstream.test", path, trust_env=True) as client:
        for _ in range(2):
            answer = await client.send("POST", "http://upstream.test/v1/messages?beta=true", {"x-one": "1"}, b"{}")
            answer.close()

    for seen in fake.seen:
        assert seen.headers == {"host": "upstream.test", "x-one": "1", "content-length": "2"}
        assert (seen.path, seen.query, seen.body) == ("/v1/messages", "beta=true", b"{}")


async def test_an_answer_with_a_long_header_is_an_answer() -> None:
    """What was worked at is charged, and an upstream behind proxies may bring headers of many kilobytes."""
    fake = FakeUpstream(replies(200, b"{}", {"content-security-policy": "x" * 30_000}))
    async with serving(fake) as path, open_client("http://upstream.test", path, trust_env=True) as client:
        answer = await client.send("POST", "http://upstream.test/v1/messages", {}, b"{}")
        assert answer.status == 200
        answer.close()


async def test_a_request_without_a_body_announces_none() -> None:
    fake = FakeUpstream(replies(200, b"{}"))
    async with serving(fake) as path, open_client("http://upstream.test", path, trust_env=True) as client:
        (await client.send("GET", "http://upstream.test/v1/models", {}, b"")).close()

    assert fake.seen[0].headers == {"host": "upstream.test"}


async def test_a_large_body_arrives_whole_with_its_length() -> None:
    body = bytes(range(256)) * 20_000
    fake = FakeUpstream(replies(200, b"{}"))
    async with serving(fake) as path, open_client("http://upstream.test", path, trust_env=True) as client:
        (await client.send("POST", "http://upstream.test/v1/messages", {}, body)).close()

    [seen] = fake.seen
    assert seen.body == body
    assert seen.headers["content-length"] == str(len(body))
    assert "transfer-encoding" not in seen.headers


async def test_what_is_compressed_without_being_asked_for_is_unpacked() -> None:
    packed = gzip.compress(b"squawk" * 1000)
    fake = FakeUpstream(replies(200, packed, {"content-encoding": "gzip"}))
    async with serving(fake) as path, open_client("http://upstream.test", path, trust_env=True) as client:
        answer = await client.send("POST", "http://upstream.test/v1/messages", {}, b"{}")
        assert b"".join([chunk async for chunk in answer.chunks()]) == b"squawk" * 1000
        answer.close()


@pytest.mark.parametrize(
    "said", [(), (b"HTTP/1.1 200",), (b"squawk\r\n\r\n",)], ids=["nothing", "half a head", "no HTTP"]
)
async def test_who_hangs_up_before_the_head_is_there_was_not_reached(said: tuple[bytes, ...]) -> None:
    async with saying(*said) as (port, heard):
        with pytest.raises(UnreachableError):
            await asked(port)
        # A request that costs money is never sent again by itself.
        assert len(heard) == 1


async def test_a_port_on_which_nobody_listens_was_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with anyio.fail_after(PATIENCE_S), pytest.raises(UnreachableError):
        await asked(port)


async def test_who_takes_the_request_and_says_nothing_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.05)
    async with saying(stay=True) as (port, _):
        with pytest.raises(SilentError):
            await asked(port)


@pytest.mark.parametrize("framing", [b"content-length: 100", b"transfer-encoding: chunked"])
async def test_who_leaves_in_the_midst_of_an_answer_breaks_it_off(framing: bytes) -> None:
    async with saying(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n", b"4\r\nkaah\r\n") as (port, _):
        with pytest.raises(BrokenOffError):
            await asked(port)


async def test_who_falls_silent_in_the_midst_of_an_answer_breaks_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.05)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    async with saying(head, b"4\r\nkaah\r\n", stay=True) as (port, _):
        with pytest.raises(BrokenOffError):
            await asked(port)


async def test_the_proxy_of_the_environment_is_used_and_no_credential_of_the_users_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine model.test login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with saying(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") as (port, heard):
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        async with open_client("http://model.test", None, trust_env=True) as client:
            answer = await client.send("POST", "http://model.test/v1/messages", {"x-api-key": "k"}, b"{}")
            answer.close()

    [request] = heard
    assert request.startswith(b"POST http://model.test/v1/messages HTTP/1.1\r\n")
    assert b"authorization" not in request.lower()


@pytest.mark.parametrize("trust_env", [True, False])
async def test_a_host_that_needs_no_proxy_is_asked_directly(monkeypatch: pytest.MonkeyPatch, trust_env: bool) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    if trust_env:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with saying(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") as (port, heard):
        url = f"http://127.0.0.1:{port}"
        async with open_client(url, None, trust_env=trust_env) as client:
            (await client.send("POST", f"{url}/v1/messages", {}, b"{}")).close()
    assert heard[0].startswith(b"POST /v1/messages HTTP/1.1\r\n")


async def test_a_proxy_of_another_kind_is_refused_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(RookeryError, match="HTTPS_PROXY") as caught:
        async with open_client("https://model.test", None, trust_env=True):
            pass
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
