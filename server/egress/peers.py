"""One side of an HTTP/1.1 conversation over a byte stream. The protocol itself is h11's."""

from __future__ import annotations

from typing import Final

import anyio
import h11
from anyio.abc import ByteStream

from server.egress.failures import EgressRefusedError, MalformedRequestError
from server.egress.traffic import CHUNK, Traffic

MAX_HEAD: Final = 32 * 1024
"""Bytes of a request's or response's head."""

Event = (
    h11.Request
    | h11.InformationalResponse
    | h11.Response
    | h11.Data
    | h11.EndOfMessage
    | h11.ConnectionClosed
    | type[h11.PAUSED]
)


class Peer:
    """A client (``role`` h11.SERVER: we serve it) or a server (``role`` h11.CLIENT).

    Args:
        stream: the connection.
        role: what we are.
        traffic: counts what is moved.
    """

    def __init__(self, stream: ByteStream, role: type[h11.CLIENT] | type[h11.SERVER], traffic: Traffic) -> None:
        self.stream = stream
        self.http = h11.Connection(role, max_incomplete_event_size=MAX_HEAD)
        self._traffic = traffic

    async def next(self) -> Event:
        """The next event that it sends.

        Raises:
            MalformedRequestError: it does not speak HTTP.
        """
        try:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                try:
                    data = await self.stream.receive(CHUNK)
                except anyio.EndOfStream:
                    data = b""
                self._traffic.count(len(data))
                self.http.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise MalformedRequestError(f"that is not HTTP/1.1: {error}") from None
        return event  # type: ignore[return-value]  # h11 has no common type of its events

    async def send(self, event: h11.Event) -> None:
        """Send an event."""
        data = self.http.send(event)
        if data:
            self._traffic.count(len(data))
            await self.stream.send(data)


async def refuse(client: Peer, asked: str, error: EgressRefusedError) -> None:
    """Tell a client why its request was refused, if it can still be told; the connection is over then."""
    if client.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    words = f"Rookery: {asked} was refused: {error}.\n".encode()
    headers = [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-length", str(len(words))),
        ("connection", "close"),
    ]
    reason = b"Refused by the policy" if error.status == EgressRefusedError.status else b""
    await client.send(h11.Response(status_code=error.status, headers=headers, reason=reason))
    await client.send(h11.Data(data=words))
    await client.send(h11.EndOfMessage())
