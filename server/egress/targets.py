"""Where a request wants to go: read once, strictly, for two parsers that differ are a way out (row X10)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from policies.hosts import HostError, parse_host
from server.egress.failures import MalformedRequestError

_AUTHORITY: Final = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.?(?::([0-9]{1,5}))?")
_ORIGIN: Final = re.compile(r"/[\x21\x22\x24-\x7e]*")
_ABSOLUTE: Final = re.compile(r"[Hh][Tt][Tt][Pp]://([^/?#]*)([/?][\x21\x22\x24-\x7e]*)?")
MAX_PORT: Final = 65_535
HTTP_PORT: Final = 80
HTTPS_PORT: Final = 443


@dataclass(frozen=True)
class Target:
    """A host (lower case, no trailing dot) and a port, with the rest of the URL for plain HTTP."""

    host: str
    port: int
    path: str = ""

    def authority(self, default_port: int) -> str:
        """For the Host header of a scheme with this default port."""
        return self.host if self.port == default_port else f"{self.host}:{self.port}"

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
    found = _target(match[1], HTTP_PORT)
    path = match[2] or "/"
    return Target(found.host, found.port, path if path.startswith("/") else f"/{path}")


def origin_target(text: str, tunnel: Target) -> Target:
    """The target of a request inside an opened tunnel: ``/path``, on the host that the tunnel leads to.

    Raises:
        MalformedRequestError: anything else: a URL with a host, ``*``, a fragment.
    """
    if _ORIGIN.fullmatch(text) is None:
        raise MalformedRequestError("a request inside a tunnel must name a path")
    return Target(tunnel.host, tunnel.port, text)


def host_header_target(text: str, default_port: int) -> Target:
    """What a Host header names.

    Raises:
        MalformedRequestError: no plain host.
    """
    return _target(text, default_port)


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
