"""The whole HTTP application: the MCP endpoint for both protocol eras, and what is served beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import anyio
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from rookery.serving.wire import MAX_MESSAGE_BYTES
from rookery.web.addresses import LOOPBACK_NAMES, Names
from rookery.web.authentication import METADATA_PATH, Authentication, Credentials
from rookery.web.guard import Guard
from rookery.web.keys import KeySet
from rookery.web.oauth import OAuth
from rookery.web.rates import Rates
from rookery.web.standing import Standing

if TYPE_CHECKING:
    from server.settings import Settings
    from tools.tool_server import ToolServer

ENDPOINT: Final = "/mcp"
"""Path of the MCP endpoint."""

SESSION_IDLE_S: Final = 1800.0
"""An MCP session of the older era that nobody uses is closed after this; agents know nothing of it."""


def build_app(
    server: ToolServer,
    settings: Settings,
    names: Names,
    beside: Sequence[BaseRoute],
    url: str,
    draining: anyio.Event,
) -> Starlette:
    """The application, with its lifespan.

    Args:
        server: the MCP server.
        names: by which names it may be called.
        beside: what is served beside the MCP endpoint.
        url: where clients find the MCP endpoint, when no public URL is set.
        draining: set when the server leaves.

    Raises:
        ValueError: the OAuth settings do not go together.
    """
    endpoint = server.streamable_http_app(
        streamable_http_path=ENDPOINT,
        max_request_body_size=MAX_MESSAGE_BYTES,
        max_sessions=settings.http_sessions,
        session_idle_timeout=SESSION_IDLE_S,
        # Said explicitly, though nothing passes the guard by another name.
        transport_security=TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=[form for host in sorted(names.hosts) for form in (host, f"{host}:*")],
            allowed_origins=[
                *sorted(names.origins),
                *(form for name in LOOPBACK_NAMES for form in (f"http://{name}", f"http://{name}:*")),
            ],
        ),
    )
    middleware = [Middleware(Guard, names)]
    if names.origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=sorted(names.origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["Mcp-Session-Id"],
            )
        )
    routes = [*beside, *endpoint.routes]
    if settings.auth:
        resource = url if settings.public_url is None else f"{settings.public_url.rstrip('/')}/mcp"
        oauth = _oauth(settings, resource)
        metadata_url = None
        if oauth is not None:
            routes += oauth.routes(resource, METADATA_PATH)
            metadata_url = f"{resource.removesuffix('/mcp')}{METADATA_PATH}/mcp"
        credentials, rates = Credentials(server.backend, oauth), Rates(settings.requests_per_minute)
        middleware.append(Middleware(Authentication, credentials.caller, metadata_url, rates))
    middleware.append(Middleware(Standing, ENDPOINT, draining))
    return Starlette(
        routes=routes,
        middleware=middleware,
        lifespan=lambda _app: server.session_manager.run(),
    )


def _oauth(settings: Settings, resource: str) -> OAuth | None:
    issuer = settings.oauth_issuer
    if issuer is None:
        return None
    return OAuth(issuer, settings.oauth_audience or resource, KeySet(issuer, settings.oauth_jwks_url))
