"""The whole HTTP application: the MCP endpoint for both protocol eras, and what is served beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from rookery.serving.wire import MAX_MESSAGE_BYTES
from rookery.web.addresses import LOOPBACK_NAMES, Names
from rookery.web.guard import Guard

if TYPE_CHECKING:
    from server.settings import Settings
    from tools.definition import ToolServer

SESSION_IDLE_S: Final = 1800.0
"""An MCP session of the older era that nobody uses is closed after this; agents know nothing of it."""


def build_app(server: ToolServer, settings: Settings, names: Names, beside: Sequence[BaseRoute]) -> Starlette:
    """The application, with its lifespan.

    Args:
        server: the MCP server.
        names: by which names it may be called.
        beside: what is served beside the MCP endpoint.
    """
    endpoint = server.streamable_http_app(
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
    return Starlette(
        routes=[*beside, *endpoint.routes],
        middleware=middleware,
        lifespan=lambda _app: server.session_manager.run(),
    )
