"""One plain HTTP request, carried to the server that it names, and the answer back.

Both sides are parsed and written anew, so that what was judged is what is sent: one request, to the host judged, with
a Host header of ours. A redirect goes back to the client, whose next request is judged in its turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import anyio
import h11
from anyio.abc import ByteStream

from server.concurrency import background_tasks
from server.egress.failures import EgressFailedError, MalformedRequestError, TrafficLimitError
from server.egress.peers import Peer
from server.egress.targets import Target, host_header_target
from server.egress.traffic import Traffic

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
"""RFC 9110 section 7.6.1, with those that older proxies are told."""

_GONE: Final = (MalformedRequestError, h11.LocalProtocolError, anyio.BrokenResourceError, anyio.ClosedResourceError)
"""How one side ends that does not keep to the protocol."""

Headers = list[tuple[bytes, bytes]]


def check_host_header(request: h11.Request, target: Target) -> None:
    """The Host header must name what the request line names (row X12).

    Raises:
        MalformedRequestError: it does not.
    """
    for name, value in request.headers:
        if name == b"host" and host_header_target(value.decode("latin-1")) != Target(target.host, target.port):
            raise MalformedRequestError("the Host header names another host than the request line")


async def forward(client: Peer, request: h11.Request, target: Target, outside: ByteStream, traffic: Traffic) -> None:
    """Carry a judged request and its answer.

    Raises:
        EgressFailedError: the server does not speak HTTP; nothing was answered yet.
        TrafficLimitError: the outlet may move no more.
    """
    server = Peer(outside, h11.CLIENT, traffic)
    async with background_tasks() as tasks:
        tasks.start_soon(_carry_request, client, server, request, target)
        await _carry_answer(client, server)


async def _carry_request(client: Peer, server: Peer, request: h11.Request, target: Target) -> None:
    headers = _end_to_end(request.headers, {b"host", b"expect"})
    if any(name == b"transfer-encoding" for name, _ in request.headers):
        headers.append((b"transfer-encoding", b"chunked"))
    try:
        await server.send(
            h11.Request(
                method=request.method,
                target=target.path.encode("ascii"),
                headers=[(b"host", target.authority.encode("ascii")), *headers, (b"connection", b"close")],
            )
        )
        if client.http.they_are_waiting_for_100_continue:
            await client.send(h11.InformationalResponse(status_code=100, headers=[]))
        while True:
            event = await client.next()
            if isinstance(event, h11.Data):
                await server.send(h11.Data(data=event.data))
            else:
                break
        await server.send(h11.EndOfMessage())
    except (*_GONE, TrafficLimitError):
        # The server hangs up on half a request, or has already: either shows in its answer.
        await server.stream.aclose()


async def _carry_answer(client: Peer, server: Peer) -> None:
    answered = False
    try:
        while True:
            event = await server.next()
            if isinstance(event, h11.Response):
                answered = True
                headers = [*_end_to_end(event.headers, set()), (b"connection", b"close")]
                await client.send(h11.Response(status_code=event.status_code, headers=headers, reason=event.reason))
            elif isinstance(event, h11.Data):
                await client.send(h11.Data(data=event.data))
            elif isinstance(event, h11.InformationalResponse):
                continue
            else:
                break
        if answered:
            await client.send(h11.EndOfMessage())
            return
    except _GONE:
        if answered:
            return
    raise EgressFailedError("the server's answer is not HTTP/1.1")


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], more: set[bytes]) -> Headers:
    """The headers that are not for one connection only; those that ``Connection`` names are."""
    listed = list(headers)
    named = {word.strip().lower() for name, value in listed if name == b"connection" for word in value.split(b",")} - {
        b"host",
        b"content-length",
    }
    return [(name, value) for name, value in listed if name not in _HOP_BY_HOP | more | named]
