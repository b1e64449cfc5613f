"""HTTP requests that offer to go on in another protocol: the offer is passed over, and the request is what it is.

Java's own client offers HTTP/2 with each request in plain HTTP.
"""

from __future__ import annotations

import anyio
import pytest
from anyio.abc import SocketStream
from starlette.types import Receive, Scope, Send

from tests.gateways import PATIENCE_S, serving

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
LENGTH = b"Content-Length: 5\r\n\r\nhello"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the path, the body and the protocol that was offered."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    offered = dict(scope["headers"]).get(b"upgrade", b"none")
    text = b"<%s %s %s>" % (scope["raw_path"], body, offered)
    head = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": text})


async def heard(stream: SocketStream, end: bytes) -> bytes:
    """What comes up to an end."""
    got = b""
    while not got.endswith(end):
        got += await stream.receive()
    return got


def parts(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("body", [LENGTH, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_request_that_offers_another_protocol_has_its_body_and_the_connection_goes_on(
    body: bytes, size: int
) -> None:
    async with serving(echo) as path, await anyio.connect_unix(str(path)) as stream:
        with anyio.fail_after(PATIENCE_S):
            for part in parts(b"POST /one HTTP/1.1\r\nHost: localhost\r\n" + OFFER + body, size):
                await stream.send(part)
            answer = await heard(stream, b">")
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"</one hello h2c>")
            await stream.send(b"GET /two HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await heard(stream, b">")).endswith(b"</two  none>")


async def test_g01_a_body_behind_an_offer_is_no_request() -> None:
    """Row G01: whoever stands between a client and us takes it for a body, and the answer to it for the next one's."""
    hidden = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /one HTTP/1.1\r\nHost: localhost\r\n" + OFFER + b"Content-Length: %d\r\n\r\n" % len(hidden)
    async with serving(echo) as path, await anyio.connect_unix(str(path)) as stream:
        with anyio.fail_after(PATIENCE_S):
            await stream.send(head)
            await stream.send(hidden)
            await stream.send(b"GET /two HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answers = await heard(stream, b"</two  none>")
    assert answers.count(b"HTTP/1.1 200") == 2
    assert b"</one " + hidden + b" h2c>" in answers


async def test_many_offers_at_once_are_passed_over_one_by_one() -> None:
    count = 2000
    one = b"GET /x HTTP/1.1\r\nHost: l\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    async with serving(echo) as path, await anyio.connect_unix(str(path)) as stream:
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, one * count + b"GET /last HTTP/1.1\r\nHost: l\r\n\r\n")
                answers = await heard(stream, b"</last  none>")
    assert answers.count(b"</x  x>") == count


async def test_an_offer_does_not_keep_a_connection_that_is_to_be_closed() -> None:
    head = b"POST /one HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: close, Upgrade\r\n"
    async with serving(echo) as path, await anyio.connect_unix(str(path)) as stream:
        with anyio.fail_after(PATIENCE_S):
            await stream.send(head + LENGTH)
            assert (await heard(stream, b">")).endswith(b"</one hello h2c>")
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
