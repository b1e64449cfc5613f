"""One HTTP request that can be read, carried to the server that it names, and the answer back.

Both sides are parsed and written anew, so that what was judged is what is sent: one request, to the host judged, with
a Host header of ours. A redirect goes back to the client, whose next request is judged in its turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import anyio
import h11

from server.concurrency import background_tasks
from server.egress.failures import EgressFailedError, EgressRefusedError, MalformedRequestError
from server.egress.peers import Peer
from server.egress.targets import Target, host_header_target

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

_OURS: Final = frozenset(
    {
        b"host",
        b"expect",
        # With these a server would do another thing than was judged: another method, another path.
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-url",
        b"x-rewrite-url",
    }
)
"""Headers of a request that are written anew or left out."""

_GONE: Final = (MalformedRequestError, h11.LocalProtocolError, anyio.BrokenResourceError, anyio.ClosedResourceError)
"""How one side ends that does not keep to the protocol."""

Headers = list[tuple[bytes, bytes]]


def check_host_header(request: h11.Request, target: Target, default_port: int) -> None:
    """The Host header must name what the request's target names (row X12).

    Raises:
        MalformedRequestError: it does not.
    """
    for name, value in request.headers:
        named = host_header_target(value.decode("latin-1"), default_port) if name == b"host" else None
        if named is not None and (named.host, named.port) != (target.host, target.port):
            raise MalformedRequestError("the Host header names another host than the request is for")


@dataclass(frozen=True)
class Request:
    """A judged request.

    Args:
        head: as the client sent it.
        target: where it goes.
        default_port: of its scheme.
        stays: whether both connections may carry another one after it.
    """

    head: h11.Request
    target: Target
    default_port: int
    stays: bool = False


async def forward(client: Peer, server: Peer, request: Request) -> None:
    """Carry a judged request and its answer.

    Raises:
        EgressFailedError: the server does not speak HTTP; nothing was answered yet.
        EgressRefusedError: the outlet may move no more.
    """
    async with background_tasks() as tasks:
        tasks.start_soon(_carry_request, client, server, request)
        await _carry_answer(client, server, request)


async def _carry_request(client: Peer, server: Peer, request: Request) -> None:
    # A body's length is told in one way only, or the server and a proxy before it could see two requests in one.
    chunked = any(name == b"transfer-encoding" for name, _ in request.head.headers)
    headers = _end_to_end(request.head.headers, _OURS | ({b"content-length"} if chunked else set()))
    if chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    if not request.stays:
        headers.append((b"connection", b"close"))
    try:
        await server.send(
            h11.Request(
                method=request.head.method,
                target=request.target.path.encode("ascii"),
                headers=[(b"host", request.target.authority(request.default_port).encode("ascii")), *headers],
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
    except (*_GONE, EgressRefusedError):
        # The server hangs up on half a request, or has already: either shows in its answer.
        await anyio.aclose_forcefully(server.stream)


async def _carry_answer(client: Peer, server: Peer, request: Request) -> None:
    answered = False
    try:
        while True:
            event = await server.next()
            if isinstance(event, h11.Response):
                answered = True
                headers = _end_to_end(event.headers, frozenset())
                if not request.stays or _is_last(event, request.head):
                    headers.append((b"connection", b"close"))
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


def _is_last(response: h11.Response, request: h11.Request) -> bool:
    """Whether a server closes its connection after a response, by its own word or by how the body ends."""
    names = {name for name, _ in response.headers}
    words = b",".join(value for name, value in response.headers if name == b"connection").lower()
    has_body = request.method != b"HEAD" and response.status_code not in (204, 304)
    unbounded = has_body and b"content-length" not in names and b"transfer-encoding" not in names
    return b"close" in words or response.http_version < b"1.1" or unbounded


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], more: frozenset[bytes] | set[bytes]) -> Headers:
    """The headers that are not for one connection only; those that ``Connection`` names are."""
    listed = list(headers)
    named = {word.strip().lower() for name, value in listed if name == b"connection" for word in value.split(b",")} - {
        b"host",
        b"content-length",
    }
    left_out = _HOP_BY_HOP | more | named
    # Many servers read "_" in a name as "-".
    return [(name, value) for name, value in listed if not left_out & {name, name.replace(b"_", b"-")}]
