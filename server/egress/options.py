"""How proxies reach the outside, and what bounds them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import anyio

from server.clock import SYSTEM_CLOCK, Clock
from server.egress.trust import upstream_context

Lookup = Callable[[str, int], Awaitable[list[str]]]
"""Addresses of a host name. Raises ``OSError`` when it has none."""


async def system_lookup(host: str, port: int) -> list[str]:
    """The addresses that this machine's resolver knows.

    Raises:
        OSError: the name does not exist, or cannot be looked up.
    """
    # The dot keeps the resolver from trying the name below the machine's own search domains.
    found = await anyio.getaddrinfo(f"{host}.", port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class Bounds:
    """Bounds of one outlet. Times in seconds."""

    connections: int = 64
    """At once; further ones wait."""
    head_s: float = 15.0
    """From a connection's start to its request's head, and to the first words of TLS."""
    lookup_s: float = 10.0
    connect_s: float = 15.0
    """For each address tried."""
    idle_s: float = 300.0
    """With no byte in either direction."""
    total_s: float = 3600.0
    """One connection."""
    bytes: int = 32 << 30
    """Both directions, all connections of one agent's life."""


@dataclass(frozen=True)
class EgressOptions:
    """What a proxy is made with.

    Args:
        lookup: resolves names.
        bounds: bounds of each outlet.
        loopback: for tests only: host name → port of this machine's loopback that stands in for it. There is no
            setting for it. What the policy says of the name still holds.
        trust: for tests only: certificates (PEM) of authorities that are trusted beside the machine's own.
        clock: wall time, for certificates.
    """

    lookup: Lookup = system_lookup
    bounds: Bounds = field(default_factory=Bounds)
    loopback: Mapping[str, int] = field(default_factory=dict)
    trust: bytes = b""
    clock: Clock = SYSTEM_CLOCK

    @cached_property
    def upstream_tls(self) -> ssl.SSLContext:
        """TLS towards servers outside. Made at the first use, which takes a while."""
        return upstream_context(self.trust)
