"""Which addresses a sandbox may never reach through the proxy (rows X11 and X12 of the security catalogue)."""

from __future__ import annotations

import ipaddress
from typing import Final

_REFUSED: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        # Said again beside what the module calls not global, for that differs between versions of Python.
        "0.0.0.0/8",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "240.0.0.0/4",
        # Azure answers its machines' questions at this address, which looks public.
        "168.63.129.16/32",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
        # IPv6 that carries any IPv4 address inside: compatible, mapped, 6to4, translated within one network.
        "::/96",
        "::ffff:0:0/96",
        "2002::/16",
        "64:ff9b:1::/48",
    )
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
"""How the internet of IPv4 is reached from networks that have IPv6 only: judged by the address inside."""


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet.

    Private, loopback, link-local (with the metadata services of clouds), carrier-grade NAT, multicast, reserved and
    documentation addresses do not, nor does what is no plain address at all.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if found in _NAT64:
        found = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
    return (
        found.is_global
        and not found.is_multicast
        and not found.is_reserved
        and not any(found in network for network in _REFUSED)
    )
