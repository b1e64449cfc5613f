"""Where a request wants to go: read once, strictly, for two parsers that differ are a way out (row X10)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from policies.hosts import HostError, parse_host
from server.egress.failures import MalformedRequestError

_AUTHORITY: Final = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.?(?::([0-9]{1,5}))?")
_ABSOLUTE: Final = re.compile(r"[Hh][Tt][Tt][Pp]://([^/?#]*)([/?][\x21\x22\x24-\x7e]*)?")
MAX_PORT: Final = 65_535


@dataclass(frozen=True)
class Target:
    """A host (lower case, no trailing dot) and a port, with the rest of the URL for plain HTTP."""

    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """For the Host header of plain HTTP."""
        return self.host if self.port == 80 else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def connect_target(text: str) -> Target:
    """The target of a CONNECT request: ``host:port`` and nothing else.

    Raises:
        MalformedRequestError: anything else: an address, credentials, a missing port.
    """
    return _target(text, None)


def absolute_target(text: str) -> Target:
    """The target of a plain request to a proxy: ``http://host[:port]/path``.

    Raises:
        MalformedRequestError: anything else: another scheme, an address, credentials, a fragment.
    """
    match = _ABSOLUTE.fullmatch(text)
    if match is None:
        raise MalformedRequestError("plain requests must name an http:// URL; https goes through CONNECT")
    found = _target(match[1], 80)
    path = match[2] or "/"
    return Target(found.host, found.port, path if path.startswith("/") else f"/{path}")


def host_header_target(text: str) -> Target:
    """What a Host header of plain HTTP names.

    Raises:
        MalformedRequestError: no plain host.
    """
    return _target(text, 80)


def _target(text: str, default_port: int | None) -> Target:
    match = _AUTHORITY.fullmatch(text)
    if match is None or (match[2] is None and default_port is None):
        raise MalformedRequestError("the request does not name a plain host and port")
    port = int(match[2]) if match[2] is not None else default_port
    assert port is not None, "checked above"
    if not 0 < port <= MAX_PORT:
        raise MalformedRequestError("there is no such port")
    try:
        return Target(parse_host(match[1]), port)
    except HostError as error:
        raise MalformedRequestError(str(error)) from None
