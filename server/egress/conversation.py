"""One request of a program inside: heard, judged, and carried or refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import anyio
import h11
from anyio.abc import ByteStream

from policies.hosts import Egress
from server.egress.dialing import dial
from server.egress.failures import NOT_ALLOWED, EgressRefusedError
from server.egress.forwarding import Request, check_host_header, forward
from server.egress.hello import server_name
from server.egress.interception import Interception, Replayed
from server.egress.journal import MAX_SHOWN, Journal, Judgement, shown_path
from server.egress.options import EgressOptions
from server.egress.peers import Peer, refuse
from server.egress.targets import HTTP_PORT, Target, absolute_target, connect_target
from server.egress.traffic import CHUNK, Traffic, exchange

if TYPE_CHECKING:
    from server.egress.authority import SandboxAuthority

ACCESS_DENIED: Final = b"\x15\x03\x01\x00\x02\x02\x31"
"""A fatal TLS alert (RFC 8446 section 6): all that can still be said in a tunnel."""


Rules = Callable[[], Egress]
"""What the policy lets out now."""

Authority = Callable[[], "Awaitable[SandboxAuthority]"]
"""The certificate authority of the sandbox, made when it is needed."""


class Conversation:
    """What follows from one connection.

    Args:
        stream: the connection from inside.
        traffic: counts its bytes.
        rules: asked at each decision, and again while bytes flow.
        options: how the outside is reached.
        journal: gets the decisions.
        authority: for connections that the policy wants opened.
    """

    def __init__(
        self,
        stream: ByteStream,
        traffic: Traffic,
        rules: Rules,
        options: EgressOptions,
        journal: Journal,
        authority: Authority,
    ) -> None:
        self._stream = stream
        self._client = Peer(stream, h11.SERVER, traffic)
        self._traffic = traffic
        self._rules = rules
        self._options = options
        self._journal = journal
        self._authority = authority
        self._verb = ""
        self._asked = ""

    async def run(self) -> None:
        """Hear the request, judge it, carry it or say why not.

        Raises:
            TrafficLimitError: the outlet may move no more.
            OSError, anyio.BrokenResourceError, anyio.ClosedResourceError: one side is gone, or said nothing in time.
        """
        try:
            with anyio.fail_after(self._options.bounds.head_s):
                request = await self._client.next()
            if isinstance(request, h11.Request):
                await self._serve(request)
        except EgressRefusedError as error:
            # It has spoken; what is left is to say why.
            self._traffic.guard = None
            self._journal.note(Judgement(self._verb, self._asked, allowed=False, because=str(error)))
            await self._refuse(error)

    async def _serve(self, request: h11.Request) -> None:
        self._verb = request.method.decode("latin-1")[:16]
        text = request.target.decode("latin-1")
        self._asked = ascii(text)[1:-1][:MAX_SHOWN]
        if request.method == b"CONNECT":
            await self._tunnel(connect_target(text))
        else:
            target = absolute_target(text)
            check_host_header(request, target, HTTP_PORT)
            await self._plain(request, target)

    async def _tunnel(self, target: Target) -> None:
        """Connect, and let TLS for just this host through; open it where the policy looks inside."""
        self._asked = str(target)
        self._require(target)
        if self._rules().intercepts(target.host, target.port):
            await self._open(target)
            return
        async with await dial(target, self._options) as outside:
            await self._client.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
            greeting = await self._greeting(target)
            self._allowed()
            self._guard(target)
            self._traffic.count(len(greeting))
            await outside.send(greeting)
            await exchange(self._stream, outside, self._traffic)

    async def _open(self, target: Target) -> None:
        """End the client's TLS here, and judge each request inside."""
        await self._client.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
        greeting = await self._greeting(target)
        context = (await self._authority()).context_for(target.host)
        self._guard(target, opened=True)
        await Interception(target, self._rules, self._options, self._journal, self._traffic).run(
            Replayed(greeting, self._stream), context
        )

    def _guard(self, target: Target, *, opened: bool = False) -> None:
        """Cut the connection as soon as the policy no longer allows it as it is."""

        def guard() -> None:
            rules = self._rules()
            self._require(target)
            if not opened and rules.intercepts(target.host, target.port):
                raise EgressRefusedError("the policy now asks to look inside")

        self._traffic.guard = guard

    async def _greeting(self, target: Target) -> bytes:
        """The client's first words, once they ask for the host that the tunnel leads to (row X12).

        Raises:
            EgressRefusedError: they do not, or are no TLS.
        """
        greeting = self._client.http.trailing_data[0]
        with anyio.move_on_after(self._options.bounds.head_s):
            while (name := server_name(greeting)) is None:
                greeting += await self._stream.receive(CHUNK)
            if name.removesuffix(".") != target.host:
                raise EgressRefusedError("the TLS greeting names another host than the tunnel")
            return greeting
        raise EgressRefusedError("a tunnel may carry TLS only, and the client must speak first")

    async def _plain(self, request: h11.Request, target: Target) -> None:
        self._asked = str(target)
        if not self._rules().permits(
            target.host, target.port, method=request.method.decode("latin-1"), path=target.path
        ):
            raise EgressRefusedError(NOT_ALLOWED)
        async with await dial(target, self._options) as outside:
            self._allowed(path=shown_path(target))
            self._guard(target, opened=True)
            await forward(self._client, Peer(outside, h11.CLIENT, self._traffic), Request(request, target, HTTP_PORT))

    def _require(self, target: Target) -> None:
        if not self._rules().permits(target.host, target.port):
            raise EgressRefusedError(NOT_ALLOWED)

    def _allowed(self, path: str = "") -> None:
        self._journal.note(Judgement(self._verb, self._asked, allowed=True, path=path))

    async def _refuse(self, error: EgressRefusedError) -> None:
        if self._client.http.our_state is h11.SWITCHED_PROTOCOL:
            await self._stream.send(ACCESS_DENIED)
        else:
            await refuse(self._client, self._asked or "the request", error)
