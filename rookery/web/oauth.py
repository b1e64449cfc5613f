"""Tokens of an OAuth issuer: this server as a resource server (RFC 6750, RFC 8707, RFC 9068, RFC 9728)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jwt
from jwt.exceptions import PyJWTError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rookery.web.keys import IssuerUnreachable, KeySet
from server.callers import Caller
from server.callers import Scope as CallerScope

__all__ = ["ALGORITHMS", "IssuerUnreachable", "OAuth"]

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures with a public key only: with a shared secret, who can check a token could make one."""

LEEWAY_S: Final = 30
"""By how much clocks may differ."""

MAX_SUBJECT: Final = 200

_SCOPES: Final = {scope.value: scope for scope in CallerScope}


class OAuth:
    """Checks the issuer's tokens.

    Args:
        issuer: the only one that is believed, exactly as its tokens name it.
        audience: what this server is called in them; a token for another server is worth nothing here (row T05).
        keys: the issuer's public keys.
    """

    def __init__(self, issuer: str, audience: str, keys: KeySet) -> None:
        self._issuer = issuer
        self.audience = audience
        self._keys = keys

    async def caller(self, token: str) -> Caller | None:
        """Whose token it is; None when it is not good.

        Raises:
            IssuerUnreachable: the issuer's keys cannot be had.
        """
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if algorithm not in ALGORITHMS or not isinstance(key_id, str):
                return None
            key = await self._keys.find(key_id)
            if key is None or key.algorithm_name != algorithm:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self.audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (PyJWTError, ValueError, TypeError, KeyError):
            return None
        return _caller(claims)

    def routes(self, resource: str, metadata_path: str) -> list[Route]:
        """The document by which clients find the issuer (RFC 9728), at the path of the server and of its endpoint."""
        document = {
            "resource": resource,
            "authorization_servers": [self._issuer],
            "scopes_supported": sorted(_SCOPES),
            "bearer_methods_supported": ["header"],
            "resource_name": "Rookery",
        }

        async def answer(_request: Request) -> Response:
            return JSONResponse(document, headers={"cache-control": "public, max-age=3600"})

        return [Route(metadata_path, answer), Route(f"{metadata_path}/mcp", answer)]


def _caller(claims: Mapping[str, Any]) -> Caller | None:
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
        return None
    given = claims.get("scope", claims.get("scp", ()))
    words = given.split() if isinstance(given, str) else given if isinstance(given, list) else ()
    scopes = frozenset(_SCOPES[word] for word in words if isinstance(word, str) and word in _SCOPES)
    return Caller(f"oauth:{subject}", scopes)
