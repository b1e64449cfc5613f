"""HTTP connections whose other end does not do its part: they are not kept, and nothing goes on for them."""

from __future__ import annotations

import socket

import anyio
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from rookery.web import addresses
from rookery.web.addresses import Address
from rookery.web.protocol import ClientProtocol
from server import http_protocol
from tests.gateways import PATIENCE_S, serving

REFUSED = {"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]}


async def test_p11_what_is_left_of_a_body_after_its_answer_does_not_keep_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P11: who has no credential is answered at once, and must not hold a place by a body that trickles on."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.1)

    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(REFUSED)
        await send({"type": "http.response.body", "body": b""})

    sent = 0
    async with serving(application) as path:
        with anyio.fail_after(PATIENCE_S):
            async with await anyio.connect_unix(str(path)) as stream:
                await stream.send(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n\r\n")
                assert (await stream.receive()).startswith(b"HTTP/1.1 401")
                with pytest.raises(anyio.BrokenResourceError):
                    for sent in range(500):  # noqa: B007 - it is looked at behind the loop
                        await stream.send(b"x")
                        await anyio.sleep(0.02)
    assert sent < 499


async def test_p03_requests_that_were_sent_ahead_of_answers_are_given_up_with_their_connection() -> None:
    """P03: the first of them, too, which is being worked at."""
    left = anyio.Event()

    async def application(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with serving(application) as path:
        async with await anyio.connect_unix(str(path)) as stream:
            await stream.send(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n" * 3)
        with anyio.fail_after(PATIENCE_S):
            await left.wait()


async def test_p11_a_client_that_reads_nothing_of_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """P11: however much there is still to be sent to it."""
    monkeypatch.setattr(addresses, "UNREAD_S", 0.5)
    left = anyio.Event()

    async def application(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 32 * 1024 * 1024, "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    config = uvicorn.Config(application, http=ClientProtocol, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    with Address.parse("127.0.0.1:0").listening() as listener, anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            with socket.create_connection(listener.getsockname()) as silent:
                silent.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                await left.wait()
            server.should_exit = True
