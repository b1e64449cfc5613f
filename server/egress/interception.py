"""A tunnel that the proxy opens: TLS ends here on both sides, and each request inside is judged by itself.

To the program in the sandbox the proxy shows a certificate of the sandbox's own authority; the server's certificate
is verified here, where the program cannot see it. One tunnel is one connection to the server, so that each side hears
at once when the other hangs up.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress

import anyio
import anyio.to_thread
import h11
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from policies.hosts import Egress
from server.concurrency import background_tasks
from server.egress.dialing import dial
from server.egress.failures import NOT_ALLOWED, EgressFailedError, EgressRefusedError
from server.egress.forwarding import Request, check_host_header, forward
from server.egress.journal import MAX_SHOWN, Journal, Judgement, shown_path
from server.egress.options import EgressOptions
from server.egress.peers import Peer, refuse
from server.egress.targets import HTTPS_PORT, Target, origin_target
from server.egress.traffic import CHUNK, Traffic

NOT_TRUSTED = "the program does not trust the certificate of this sandbox's proxy, which SSL_CERT_FILE names"


class Replayed(ByteStream):
    """A stream of which some bytes were read already: they come first."""

    def __init__(self, first: bytes, stream: ByteStream) -> None:
        self._first = first
        self._stream = stream

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        if self._first:
            piece, self._first = self._first[:max_bytes], self._first[max_bytes:]
            return piece
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Interception:
    """One opened tunnel.

    Args:
        tunnel: where it leads.
        rules: what the policy lets out, asked for each request.
        options: how the outside is reached.
        journal: gets each decision.
        traffic: counts the bytes.
    """

    def __init__(
        self,
        tunnel: Target,
        rules: Callable[[], Egress],
        options: EgressOptions,
        journal: Journal,
        traffic: Traffic,
    ) -> None:
        self._tunnel = tunnel
        self._rules = rules
        self._options = options
        self._journal = journal
        self._traffic = traffic
        self._server: Peer | None = None

    async def run(self, stream: ByteStream, context: ssl.SSLContext) -> None:
        """Serve the requests of a client until one side has no more to say.

        Args:
            stream: begins with the client's TLS greeting.
            context: has a certificate for the tunnel's host.

        Raises:
            EgressRefusedError: the client does not speak TLS with us.
            TrafficLimitError: the outlet may move no more.
        """
        try:
            with anyio.fail_after(self._options.bounds.head_s):
                secure = await TLSStream.wrap(stream, server_side=True, ssl_context=context, standard_compatible=False)
        except (ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError, TimeoutError):
            raise EgressRefusedError(NOT_TRUSTED) from None
        client = Peer(secure, h11.SERVER, self._traffic)
        try:
            while await self._next(client):
                client.http.start_next_cycle()
        finally:
            if self._server is not None:
                await anyio.aclose_forcefully(self._server.stream)
            with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                await secure.aclose()

    async def _next(self, client: Peer) -> bool:
        """Serve one request; whether another may follow."""
        verb, asked, path = "", str(self._tunnel), ""
        try:
            head = await self._hear(client)
            if head is None:
                return False
            verb = head.method.decode("latin-1")[:16]
            asked = f"{verb} {asked}"
            target = origin_target(head.target.decode("latin-1"), self._tunnel)
            path = shown_path(target)
            check_host_header(head, target, HTTPS_PORT)
            method = head.method.decode("latin-1")
            if not self._rules().permits(target.host, target.port, method=method, path=target.path):
                raise EgressRefusedError(NOT_ALLOWED)
            server = await self._reach()
            self._journal.note(Judgement(verb, f"{verb} {self._tunnel}", allowed=True, path=path))
            await forward(client, server, Request(head, target, HTTPS_PORT, stays=True))
        except EgressRefusedError as error:
            # It has spoken; what is left is to say why.
            self._traffic.guard = None
            shown = f"{asked}{path}"[: MAX_SHOWN * 2]
            self._journal.note(Judgement(verb, shown, allowed=False, because=str(error), path=path))
            await refuse(client, shown, error)
            return False
        if any(state is not h11.DONE for peer in (client, server) for state in peer.http.states.values()):
            return False
        server.http.start_next_cycle()
        return True

    async def _hear(self, client: Peer) -> h11.Request | None:
        """The client's next request; None when one side has hung up instead."""
        request: h11.Request | None = None

        async def watch(server: Peer) -> None:
            # Nothing is due from it now: whatever comes is its end, or is not to be trusted.
            with suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                await server.stream.receive(1)
            listening.cancel()

        async with background_tasks() as tasks:
            with anyio.CancelScope() as listening:
                if self._server is not None:
                    tasks.start_soon(watch, self._server)
                event = await client.next()
                request = event if isinstance(event, h11.Request) else None
        return request

    async def _reach(self) -> Peer:
        """The server, over TLS with its certificate verified.

        Raises:
            EgressRefusedError: its address may not be reached.
            EgressFailedError: nobody answers, or it is not who it should be.
        """
        if self._server is None:
            outside = await dial(self._tunnel, self._options)
            try:
                context = await anyio.to_thread.run_sync(lambda: self._options.upstream_tls)
                with anyio.fail_after(self._options.bounds.connect_s):
                    stream = await TLSStream.wrap(outside, hostname=self._tunnel.host, ssl_context=context)
            except ssl.SSLCertVerificationError as error:
                reason = f"the certificate of {self._tunnel} is not valid: {error.verify_message}"
                raise EgressFailedError(reason) from None
            except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
                raise EgressFailedError(f"{self._tunnel} does not speak TLS") from None
            except BaseException:
                await anyio.aclose_forcefully(outside)
                raise
            self._server = Peer(stream, h11.CLIENT, self._traffic)
        return self._server
