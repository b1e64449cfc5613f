"""Hosts: names and patterns of names, URLs reduced to their host, and what a policy lets out of the sandbox."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from policies.url_paths import may_lie_below, surely_lies_below

_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
MAX_HOST: Final = 253


class HostError(ValueError):
    """Not a host, or not one that a policy may name. The text says why."""


def parse_host(text: str) -> str:
    """A host name in lower case and ASCII (IDNA).

    Raises:
        HostError: an address, a single label, or no host name at all.
    """
    name = text.strip().rstrip(".").lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise HostError(f"{text[:80]!r} is not a host name") from None
    if _is_address(name):
        raise HostError("addresses are not allowed, only host names")
    labels = name.split(".")
    if len(name) > MAX_HOST or len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        raise HostError(f"{text[:80]!r} is not a full host name")
    return name


def _is_address(name: str) -> bool:
    """Whether a name is, or some resolver would read it as, an IP address: ``127.1``, ``0x7f000001``, ``[::1]``."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        last = name.rsplit(".", 1)[-1]
        return last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last) is not None
    return True


def parse_host_pattern(text: str) -> str:
    """A host name, ``*.`` with a host name (its subdomains, not itself), or ``*`` (every host).

    Raises:
        HostError: anything else.
    """
    if text == "*":
        return text
    if text.startswith("*."):
        return f"*.{parse_host(text[2:])}"
    if "*" in text:
        raise HostError(f"in {text[:80]!r} the star is not at the start: write *.example.com")
    if "/" in text or ":" in text:
        raise HostError(f"{text[:80]!r} is not a bare host name: leave out scheme, port and path")
    return parse_host(text)


def host_matches(pattern: str, host: str) -> bool:
    """Whether a pattern covers a host; ``*.example.com`` covers subdomains only."""
    return pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def meet_hosts(first: str, second: str) -> str | None:
    """The pattern of all hosts that both cover, or None: of two that meet, one lies in the other."""
    if first == "*" or first == second:
        return second
    if second == "*":
        return first
    for wide, narrow in ((first, second), (second, first)):
        if wide.startswith("*.") and narrow.removeprefix("*").endswith(wide[1:]):
            return narrow
    return None


def url_host(url: str) -> tuple[str, int]:
    """The host and port that a fetch of this URL speaks to.

    Raises:
        HostError: not http(s), credentials in it, an address, characters that parsers disagree about.
    """
    if len(url) > 8192:
        raise HostError("the URL is too long")
    # Backslashes, blanks and control characters are where two parsers see two hosts.
    if re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise HostError("the URL holds blanks, control characters or backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise HostError("the URL is malformed") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise HostError("only http and https URLs can be judged")
    if "@" in parts.netloc or parts.hostname is None or "%" in parts.netloc:
        raise HostError("the URL has no plain host")
    return parse_host(parts.hostname), port or (80 if parts.scheme.lower() == "http" else 443)


ALL_PORTS: Final = range(1, 65_536)


@dataclass(frozen=True)
class HostRule:
    """One entry of a network rule.

    Args:
        host: a host pattern, as :func:`parse_host_pattern` returns it.
        ports: TCP ports.
        methods: HTTP methods in upper case; empty means all. Needs ``intercept``.
        paths: URL path prefixes; empty means all. Needs ``intercept``.
        intercept: the proxy opens TLS with a certificate authority of that sandbox's own.
    """

    host: str
    ports: Container[int] = (443,)
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    intercept: bool = False

    @property
    def looks_inside(self) -> bool:
        """Whether this entry can be judged only with the connection opened."""
        return self.intercept or bool(self.methods) or bool(self.paths)

    def names(self, host: str, port: int) -> bool:
        """Whether a connection falls under this entry."""
        return port in self.ports and host_matches(self.host, host)

    def allows(self, method: str | None, path: str | None) -> bool:
        """Whether this entry, as an allow, surely covers a request; both are None for a connection as such."""
        if method is not None and self.methods and method not in self.methods:
            return False
        return path is None or not self.paths or any(surely_lies_below(path, prefix) for prefix in self.paths)

    def denies(self, method: str | None, path: str | None) -> bool:
        """Whether this entry, as a denial, may cover a request.

        A denial of some methods or paths is no denial of the connection, which may carry others.
        """
        if self.methods and (method is None or method.upper() not in self.methods):
            return False
        return not self.paths or (path is not None and any(may_lie_below(path, prefix) for prefix in self.paths))


@dataclass(frozen=True)
class HostRules:
    """The network rules of one layer."""

    allowed: tuple[HostRule, ...] = ()
    denied: tuple[HostRule, ...] = ()

    def permits(self, host: str, port: int, method: str | None, path: str | None) -> bool:
        """Whether this layer lets it out: some allow covers it and no denial does."""
        return any(rule.names(host, port) and rule.allows(method, path) for rule in self.allowed) and not any(
            rule.names(host, port) and rule.denies(method, path) for rule in self.denied
        )


@dataclass(frozen=True)
class Egress:
    """What all layers together let out of the sandbox: for the egress proxy."""

    layers: tuple[HostRules, ...]

    def permits(self, host: str, port: int = 443, *, method: str | None = None, path: str | None = None) -> bool:
        """Whether the sandbox may speak to a host (and, of an intercepted connection, make this request).

        A host that is not a full host name is refused. The proxy still has to refuse names that resolve to private,
        loopback or link-local addresses: a name says nothing of where it leads.
        """
        try:
            name = parse_host(host)
        except HostError:
            return False
        return bool(self.layers) and all(layer.permits(name, port, method, path) for layer in self.layers)

    def intercepts(self, host: str, port: int = 443) -> bool:
        """Whether a connection to this host must be opened by the proxy, for some rule looks inside."""
        return any(rule.looks_inside and rule.names(host, port) for rule in self._rules)

    @property
    def looks_inside(self) -> bool:
        """Whether some connection must be opened, so that the sandbox has to trust the proxy's certificates."""
        return any(rule.looks_inside for rule in self._rules)

    @property
    def _rules(self) -> Iterator[HostRule]:
        return (rule for layer in self.layers for rule in (*layer.allowed, *layer.denied))

    def permits_fetch(self, url: str) -> bool:
        """Whether a GET of this URL would get out: what a fetch by the CLI itself asks for.

        ``http`` may be asked for as ``https`` instead, so either is enough for it.
        """
        try:
            host, port = url_host(url)
        except HostError:
            return False
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        ports = (port, 443) if port == 80 else (port,)
        return any(self.permits(host, one, method="GET", path=path) for one in ports)

    @staticmethod
    def everything() -> HostRules:
        """The rules of a layer that leaves the network to the others."""
        return HostRules((HostRule("*", ports=ALL_PORTS),))

    @property
    def hosts(self) -> tuple[str, ...]:
        """Patterns of the hosts that every layer allows and none denies as a whole, sorted."""
        if not self.layers:
            return ()
        patterns: set[str] = {rule.host for rule in self.layers[0].allowed}
        for layer in self.layers[1:]:
            patterns = _meet(patterns, {rule.host for rule in layer.allowed})
        denied = [rule for layer in self.layers for rule in layer.denied if not rule.methods and not rule.paths]
        return tuple(
            sorted(
                pattern
                for pattern in patterns
                if not any(meet_hosts(rule.host, pattern) == pattern and 443 in rule.ports for rule in denied)
            )
        )


def _meet(first: Iterable[str], second: Iterable[str]) -> set[str]:
    return {both for one in first for other in second if (both := meet_hosts(one, other)) is not None}
