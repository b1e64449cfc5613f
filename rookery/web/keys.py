"""An OAuth issuer's public keys, fetched when they are needed and kept for a while."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import httpx2
from jwt import PyJWK, PyJWKSet
from jwt.exceptions import PyJWTError

from rookery.web.addresses import LOOPBACK_NAMES

FETCH_S: Final = 5.0
"""Longest that the issuer may take for one answer."""

FRESH_S: Final = 600.0
"""Keys are fetched again after this: one that the issuer withdrew is not trusted for longer."""

STALE_S: Final = 3600.0
"""An issuer that cannot be reached is believed by its last keys for so long."""

AGAIN_S: Final = 10.0
"""Shortest time between two fetches: nobody makes us ask the issuer by inventing keys."""

MAX_BYTES: Final = 262_144
MAX_KEYS: Final = 100

_DISCOVERY: Final = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")


class IssuerUnreachable(Exception):  # noqa: N818 - named for what it says
    """The issuer's keys cannot be had, so nothing can be said about its tokens."""


class KeySet:
    """The keys of one issuer.

    Args:
        issuer: its URL; where the keys are is read from its metadata.
        url: where the keys are, when that is known.
        client: makes an HTTP client.
        now: monotonic seconds.

    Raises:
        ValueError: a URL that is neither https nor of this machine.
    """

    def __init__(
        self,
        issuer: str,
        url: str | None = None,
        *,
        client: Callable[[], AbstractAsyncContextManager[httpx2.AsyncClient]] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = _trusted(issuer)
        self._url = None if url is None else _trusted(url)
        self._client = client or _client
        self._now = now
        self._keys: dict[str, PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._lock = anyio.Lock()

    async def find(self, key_id: str) -> PyJWK | None:
        """The key of an id; None when the issuer has no such key.

        Raises:
            IssuerUnreachable: it cannot be asked, and what it last said is too old.
        """
        known = self._keys.get(key_id)
        if known is not None and (self._age() < FRESH_S or (self._age() < STALE_S and self._is_busy())):
            return known
        async with self._lock:
            if (self._age() >= FRESH_S or key_id not in self._keys) and self._may_try():
                self._tried_at = self._now()
                try:
                    self._keys = await self._fetch()
                    self._fetched_at = self._now()
                except (httpx2.HTTPError, OSError, ValueError, PyJWTError, KeyError, TypeError) as error:
                    if self._age() >= STALE_S:
                        raise IssuerUnreachable(type(error).__name__) from error
                finally:
                    # Who waited for this attempt makes none of its own, however long it took.
                    self._tried_at = self._now()
            if self._age() >= STALE_S:
                raise IssuerUnreachable("it could not be reached a moment ago")
            return self._keys.get(key_id)

    def _is_busy(self) -> bool:
        """Whether the issuer is being asked already: nobody who can be answered without it waits for that."""
        return self._lock.locked()

    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._now() - self._fetched_at

    def _may_try(self) -> bool:
        return self._tried_at is None or self._now() - self._tried_at >= AGAIN_S

    async def _fetch(self) -> dict[str, PyJWK]:
        async with self._client() as client:
            url = self._url or await self._discovered(client)
            found = PyJWKSet.from_dict(await _document(client, url))
        return {str(key.key_id): key for key in found.keys[:MAX_KEYS] if key.key_id is not None}

    async def _discovered(self, client: httpx2.AsyncClient) -> str:
        for path in _DISCOVERY:
            try:
                said = await _document(client, self._issuer.rstrip("/") + path)
            except (httpx2.HTTPStatusError, ValueError):
                continue
            if said.get("issuer") == self._issuer:
                return _trusted(str(said["jwks_uri"]))
        raise ValueError("the issuer says nowhere where its keys are")


def _client() -> AbstractAsyncContextManager[httpx2.AsyncClient]:
    return httpx2.AsyncClient(timeout=FETCH_S, follow_redirects=False)


async def _document(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    """A JSON object, of bounded size and in bounded time."""
    with anyio.fail_after(FETCH_S):
        async with client.stream("GET", url, headers={"accept": "application/json"}) as response:
            response.raise_for_status()
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError("the document is too long")
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("the document is no object")
    return document


def _trusted(url: str) -> str:
    """A URL whose answers can be believed: by TLS, or of this machine.

    Raises:
        ValueError: it is neither.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https" or (parts.scheme == "http" and (host in LOOPBACK_NAMES or host == "::1")):
        return url
    raise ValueError(f"{url}: must be https")
