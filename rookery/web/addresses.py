"""Where HTTP is served, and by which names it may be called there."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine in a Host header. No page of a foreign site can make a browser send one of them to us as its
own origin, so they are allowed wherever the server listens."""

UNIX: Final = "unix:"

UNREAD_S: Final = 300.0
"""A client that takes nothing of its answer for so long is cut off, by the kernel; so is one that was switched off."""


@dataclass(frozen=True)
class Address:
    """An address to listen on: a host with a port, or the path of a Unix socket.

    Raises:
        ValueError: the text is neither; the message says what is wanted.
    """

    host: str
    port: int
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:/PATH``.

        Raises:
            ValueError: it is none of these; the message says so.
        """
        if text.startswith(UNIX):
            path = Path(text.removeprefix(UNIX))
            if not path.is_absolute():
                raise ValueError(f"a Unix socket has an absolute path, as in unix:/run/rookery.sock; not {text}")
            return cls("localhost", 0, path)
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or int(port) > 65_535:
            raise ValueError(f"an address is HOST:PORT, as in 127.0.0.1:8930, or unix:/PATH; not {text}")
        return cls("127.0.0.1" if host == "localhost" else host, int(port))

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it, so that it may be served without authentication (row P09)."""
        if self.path is not None:
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for all addresses of the machine, and so gives no name to be called by."""
        try:
            return self.path is None and ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @contextmanager
    def listening(self) -> Iterator[socket.socket]:
        """A socket that listens there; one of a path is for this user alone, and gone afterwards.

        Raises:
            OSError: the address is taken, or cannot be had.
        """
        if self.path is None:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            with socket.create_server((self.host, self.port), family=family) as listener:
                # Connections inherit it. asyncio would set it, but only on sockets that name their protocol; without
                # it an answer in two writes waits 40 ms for the client's delayed acknowledgement (measured).
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if sys.platform == "linux":
                    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNREAD_S * 1000))
                yield listener
            return
        with socket.socket(socket.AF_UNIX) as listener:
            _remove_stale(self.path)
            before = os.umask(0o177)
            try:
                listener.bind(str(self.path))
            finally:
                os.umask(before)
            made = self.path.lstat().st_ino
            try:
                listener.listen(128)
                yield listener
            finally:
                with suppress(OSError):
                    if self.path.lstat().st_ino == made:
                        self.path.unlink()

    def url(self, listener: socket.socket) -> str:
        """Where clients find the MCP endpoint."""
        if self.path is not None:
            return f"{UNIX}{self.path}:/mcp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{listener.getsockname()[1]}/mcp"


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        OSError: somebody does, or it is something else.
    """
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(kind):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                return
    raise FileExistsError(17, "something is there already")


@dataclass(frozen=True)
class Names:
    """The names by which the server may be called.

    Args:
        hosts: values of the Host header, each without a port and with any, or with exactly the one it has.
        origins: values of the Origin header: pages that may call from a browser.
    """

    hosts: frozenset[str]
    origins: frozenset[str]

    @classmethod
    def of(cls, address: Address, public_url: str | None, origins: tuple[str, ...]) -> Names:
        """All names of a server that listens on an address and is known to the world by a URL."""
        hosts = set(LOOPBACK_NAMES)
        if address.path is None and not address.is_wildcard:
            hosts.add(f"[{address.host}]" if ":" in address.host else address.host.lower())
        allowed = {origin.lower().rstrip("/") for origin in origins}
        if public_url is not None:
            public = urlsplit(public_url.lower())
            hosts.add(public.netloc)
            allowed.add(f"{public.scheme}://{public.netloc}")
        return cls(frozenset(hosts), frozenset(allowed))

    def allows_host(self, host: str) -> bool:
        """Whether a request may name this host."""
        host = host.lower()
        return host in self.hosts or _without_port(host) in self.hosts

    def allows_origin(self, origin: str) -> bool:
        """Whether a page of this origin may call: one that is named, or one of this machine's own."""
        origin = origin.lower()
        if origin in self.origins:
            return True
        scheme, _, host = origin.partition("://")
        return scheme == "http" and _without_port(host) in LOOPBACK_NAMES


def _without_port(host: str) -> str:
    name, separator, port = host.rpartition(":")
    return name if separator and port.isascii() and port.isdecimal() else host
