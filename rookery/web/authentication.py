"""Who calls over HTTP: API tokens of this home, and tokens of an OAuth issuer, both as bearer tokens.

What a client shows is checked here and goes no further: it is never sent to anyone else (row T05), and what it stands
for travels in the request itself (see :mod:`tools.identity`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rookery.web.guard import OPEN_PATHS, refuse
from rookery.web.oauth import IssuerUnreachable, OAuth
from rookery.web.rates import Rates
from server.callers import Caller
from server.errors import RookeryError
from server.tokens import PREFIX
from tools.backend import Backend
from tools.identity import SCOPE_KEY

METADATA_PATH: Final = "/.well-known/oauth-protected-resource"
"""Where RFC 9728 has clients look for the issuer; answered without a credential."""

MAX_TOKEN_CHARACTERS: Final = 16_384

UNAUTHORIZED: Final = 401
TOO_MANY: Final = 429
UNAVAILABLE: Final = 503


@dataclass(frozen=True)
class Credentials:
    """How bearer tokens are checked.

    Args:
        backend: whose registry knows the API tokens.
        oauth: the issuer's tokens; None when there is no issuer.
    """

    backend: Backend
    oauth: OAuth | None

    async def caller(self, token: str) -> Caller | None:
        """Whose token it is; None when it is not good.

        Raises:
            RookeryError: the store cannot be asked.
            IssuerUnreachable: the issuer's keys cannot be had.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            return None
        if token.startswith(PREFIX):
            return await (await self.backend.registry()).caller_of_token(token)
        return None if self.oauth is None else await self.oauth.caller(token)


class Authentication:
    """ASGI middleware that lets nobody pass who has not said who they are.

    Args:
        app: what is protected.
        identify: whose a bearer token is.
        metadata_url: where a client finds out how to get a token; None when there is no issuer.
        rates: how often each principal may ask.
    """

    def __init__(
        self,
        app: ASGIApp,
        identify: Callable[[str], Awaitable[Caller | None]],
        metadata_url: str | None,
        rates: Rates,
    ) -> None:
        # It shows the request's user to the SDK, which binds its own state to it.
        self._app = AuthContextMiddleware(app)
        self._identify = identify
        self._metadata_url = metadata_url
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        token = _bearer(Headers(scope=scope))
        try:
            caller = None if token is None else await self._identify(token)
        except (RookeryError, IssuerUnreachable):
            message = "Credentials cannot be checked at the moment; try again."
            await refuse(scope, receive, send, UNAVAILABLE, message, {"retry-after": "5"})
            return
        if caller is None:
            await refuse(scope, receive, send, UNAUTHORIZED, _WANTED, self._challenge(shown=token is not None))
            return
        wait_s = self._rates.wait_for(caller.principal)
        if wait_s:
            message = f"Too many requests: this account may make {self._rates.per_minute} a minute."
            await refuse(scope, receive, send, TOO_MANY, message, {"retry-after": str(wait_s)})
            return
        await self._app({**scope, SCOPE_KEY: caller, "user": _user(caller)}, receive, send)

    def _challenge(self, *, shown: bool) -> Mapping[str, str]:
        parts = ['error="invalid_token"'] if shown else []
        if self._metadata_url is not None:
            parts.append(f'resource_metadata="{self._metadata_url}"')
        return {"www-authenticate": " ".join(("Bearer", ", ".join(parts))).strip()}


_WANTED: Final = "A bearer token is wanted that is good here; `rookery tokens create` makes one."


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path == METADATA_PATH or path.startswith(f"{METADATA_PATH}/")


def _bearer(headers: Headers) -> str | None:
    """The one bearer token of a request. It is looked for in the header only: addresses end up in logs."""
    given = headers.getlist("authorization")
    if len(given) != 1:
        return None
    scheme, _, token = given[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _user(caller: Caller) -> AuthenticatedUser:
    """The caller as the SDK knows it: a session of the older protocol belongs to the credential that opened it."""
    credential = caller.token_id or caller.principal
    scopes = sorted(scope.value for scope in caller.scopes)
    return AuthenticatedUser(AccessToken(token="", client_id=credential, scopes=scopes, subject=caller.principal))
