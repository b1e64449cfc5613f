"""One request of a program inside: heard, judged, and carried or refused."""

from __future__ import annotations

from typing import Final

import anyio
import h11
from anyio.abc import ByteStream

from policies.hosts import Egress
from server.egress.dialing import dial
from server.egress.failures import EgressRefusedError
from server.egress.forwarding import check_host_header, forward
from server.egress.hello import server_name
from server.egress.journal import Journal, Judgement
from server.egress.options import EgressOptions
from server.egress.peers import Peer
from server.egress.targets import Target, absolute_target, connect_target
from server.egress.traffic import CHUNK, Traffic, exchange

MAX_SHOWN: Final = 120
"""Characters of what was asked for, in the journal, when it names no host."""

ACCESS_DENIED: Final = b"\x15\x03\x01\x00\x02\x02\x31"
"""A fatal TLS alert (RFC 8446 section 6): all that can still be said in a tunnel."""


class Conversation:
    """What follows from one connection.

    Args:
        stream: the connection from inside.
        traffic: counts its bytes.
        rules: what the policy lets out.
        options: how the outside is reached.
        journal: gets the decision.
    """

    def __init__(
        self, stream: ByteStream, traffic: Traffic, rules: Egress, options: EgressOptions, journal: Journal
    ) -> None:
        self._stream = stream
        self._client = Peer(stream, h11.SERVER, traffic)
        self._traffic = traffic
        self._rules = rules
        self._options = options
        self._journal = journal
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
            check_host_header(request, target)
            await self._plain(request, target)

    async def _tunnel(self, target: Target) -> None:
        """Connect, and let TLS for just this host through."""
        self._asked = str(target)
        self._require(self._rules.permits(target.host, target.port))
        if self._rules.intercepts(target.host, target.port):
            raise EgressRefusedError("the policy asks to look inside, which this version cannot do")
        async with await dial(target, self._options) as outside:
            await self._client.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
            greeting = await self._greeting(target)
            self._allowed()
            self._traffic.count(len(greeting))
            await outside.send(greeting)
            await exchange(self._stream, outside, self._traffic)

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
        method = request.method.decode("latin-1")
        self._require(self._rules.permits(target.host, target.port, method=method, path=target.path))
        async with await dial(target, self._options) as outside:
            self._allowed()
            await forward(self._client, request, target, outside, self._traffic)

    def _require(self, permitted: bool) -> None:
        if not permitted:
            raise EgressRefusedError("the policy does not allow it")

    def _allowed(self) -> None:
        self._journal.note(Judgement(self._verb, self._asked, allowed=True))

    async def _refuse(self, error: EgressRefusedError) -> None:
        if self._client.http.our_state is h11.SWITCHED_PROTOCOL:
            await self._stream.send(ACCESS_DENIED)
        elif self._client.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            words = f"Rookery: {self._asked or 'the request'} was refused: {error}.\n".encode()
            headers = [
                ("content-type", "text/plain; charset=utf-8"),
                ("content-length", str(len(words))),
                ("connection", "close"),
            ]
            reason = b"Refused by the policy" if error.status == EgressRefusedError.status else b""
            await self._client.send(h11.Response(status_code=error.status, headers=headers, reason=reason))
            await self._client.send(h11.Data(data=words))
            await self._client.send(h11.EndOfMessage())
