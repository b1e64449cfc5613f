"""The HTTP client towards the upstream, and what can go wrong with it.

aiohttp: of the clients that are kept up, the one that reads answers in C and from the event loop's own callbacks. A
request costs a third of what it costs with httpx (measured), in the one process in which all agents' requests meet.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio.to_thread

from server.errors import ErrorCode, RookeryError

if TYPE_CHECKING:
    from pathlib import Path
    from ssl import SSLContext

    import aiohttp

CONNECT_TIMEOUT_S: Final = 15.0
READ_TIMEOUT_S: Final = 600.0
"""Longest silence of the upstream: as long as the CLI itself waits (``x-stainless-timeout``). A long answer that is
not streamed is silent until it is finished."""

MAX_CONNECTIONS: Final = 1000
"""Connections to the upstream. Each running request holds one, so this only stops a runaway."""

KEEP_ALIVE_S: Final = 60.0
"""An agent that runs a tool between two requests finds its connection still there, and saves a handshake."""

CLOSE_TIMEOUT_S: Final = 2.0

MAX_HEADER: Final = 64 * 1024
"""Bytes of one header of an answer."""

_NOT_BY_ITSELF: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""Headers that the client would add: what goes is what the gateway has built."""

_LARGE: Final = 1024 * 1024
"""Bytes of a body from which on it is written in pieces, between which other requests get their turn."""


class UnreachableError(Exception):
    """The upstream was not reached, or hung up without a word."""


class SilentError(Exception):
    """The upstream took the request and said nothing for :data:`READ_TIMEOUT_S`: it may have done the work."""


class BrokenOffError(Exception):
    """The upstream left in the midst of its answer."""


class Answer:
    """One answer of the upstream, whose body is read as it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status

    @property
    def headers(self) -> Iterable[tuple[str, str]]:
        """All headers, in their order."""
        return self._response.headers.items()

    def header(self, name: str) -> str | None:
        """The first header of a name, in any case of letters; None without."""
        return self._response.headers.get(name)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; what is compressed is unpacked.

        Raises:
            BrokenOffError: it ends before its end.
        """
        import aiohttp

        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise BrokenOffError(repr(error)) from error

    def close(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        self._response.release()


class UpstreamClient:
    """Sends requests as they are: follows no redirect, keeps no cookies, adds no credentials.

    Args:
        session: the connections.
        proxy: the proxy to go by.
    """

    def __init__(self, session: aiohttp.ClientSession, proxy: str | None) -> None:
        self._session = session
        self._proxy = proxy

    async def send(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> Answer:
        """Send a request; its answer, once its head is there. The caller closes it.

        Raises:
            UnreachableError: no answer came.
            SilentError: none came in time.
        """
        import aiohttp
        from yarl import URL

        body = _pieces(content) if len(content) > _LARGE else content or None
        sent = {**headers, "content-length": str(len(content))} if content else headers
        try:
            response = await self._session.request(
                method, URL(url, encoded=True), headers=sent, data=body, proxy=self._proxy, allow_redirects=False
            )
        except aiohttp.SocketTimeoutError as error:
            raise SilentError(repr(error)) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UnreachableError(repr(error)) from error
        return Answer(response)


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _LARGE):
        yield content[start : start + _LARGE]


@asynccontextmanager
async def open_client(base_url: str, socket: Path | None, *, trust_env: bool) -> AsyncIterator[UpstreamClient]:
    """A client for one upstream.

    Args:
        base_url: the upstream's address.
        socket: Unix socket to connect to instead.
        trust_env: use the proxy and certificates that the environment names.

    Raises:
        RookeryError: ``invalid_argument``: the environment names a proxy of a kind that is not supported.
    """
    # In a thread: it takes a quarter of a second, in which a server that starts can already answer its client.
    aiohttp = await anyio.to_thread.run_sync(importlib.import_module, "aiohttp")
    limits = {"limit": MAX_CONNECTIONS, "keepalive_timeout": KEEP_ALIVE_S}
    if socket is None:
        certificates = await anyio.to_thread.run_sync(_certificates, trust_env)
        connector = aiohttp.TCPConnector(ssl=certificates, **limits)
    else:
        connector = aiohttp.UnixConnector(str(socket), **limits)
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_NOT_BY_ITSELF,
        max_line_size=MAX_HEADER,
        max_field_size=MAX_HEADER,
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S),
    )
    try:
        yield UpstreamClient(session, _proxy_for(base_url) if trust_env and socket is None else None)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_TIMEOUT_S):
            await session.close()


def _certificates(trust_env: bool) -> SSLContext:
    """Those that the system trusts, or that ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` name."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=trust_env)


def _proxy_for(url: str) -> str | None:
    """The proxy that ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` name for an address."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None
    address = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(address).scheme not in ("http", "https"):
        raise RookeryError(
            ErrorCode.INVALID_ARGUMENT,
            "The environment names a proxy that is none of HTTP: set HTTPS_PROXY to an http or https address, or take "
            "the model API's host out with NO_PROXY.",
        )
    return address
