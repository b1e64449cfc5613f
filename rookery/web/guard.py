"""The first look at every request: whom it calls, from where, and whether its body comes in time.

A page in a browser can be made to send requests to any address by a name that its owner rebinds, so a server that
checks no names serves every web page that its user opens (row P06).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rookery.web.addresses import Names

BODY_TIMEOUT_S: Final = 30.0
"""Longest pause within the body of a request: whoever trickles it holds a place that others want."""

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""Asked by supervisors under whatever name they know; they tell nothing but that the server is there."""

MISDIRECTED: Final = 421
FORBIDDEN: Final = 403
REQUEST_TIMEOUT: Final = 408


class Guard:
    """ASGI middleware before everything else.

    Args:
        app: what is guarded.
        names: by which names the server may be called.
        body_timeout_s: longest pause within a request's body.
    """

    def __init__(self, app: ASGIApp, names: Names, *, body_timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._app = app
        self._names = names
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refuse(scope, receive, send, *refusal)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        await self._within_time(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        if scope["path"] in OPEN_PATHS:
            return None
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._names.allows_host(hosts[0]):
            return MISDIRECTED, "This server is not called by that name; set ROOKERY_PUBLIC_URL to the name it has."
        if any(not self._names.allows_origin(origin) for origin in origins):
            return (
                FORBIDDEN,
                "Pages of that origin may not call this server; ROOKERY_ALLOWED_ORIGINS names others.",
            )
        return None

    async def _within_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = late = started = False

        async def timely() -> Message:
            nonlocal complete, late
            if complete:
                return await receive()
            with anyio.move_on_after(self._body_timeout_s) as bound:
                message = await receive()
                complete = message["type"] != "http.request" or not message.get("more_body", False)
            if bound.cancelled_caught:
                complete = late = True
                return {"type": "http.disconnect"}
            return message

        async def once(message: Message) -> None:
            nonlocal started
            if late and not started:
                return  # what the application makes of a cut body is of no interest
            started = True
            await send(message)

        await self._app(scope, timely, once)
        if late and not started:
            await refuse(scope, receive, send, REQUEST_TIMEOUT, "The request's body did not come in time.")


async def refuse(
    scope: Scope, receive: Receive, send: Send, status: int, message: str, headers: Mapping[str, str] | None = None
) -> None:
    """Answer with an error and close: of a WebSocket before it is accepted, else as an HTTP response."""
    response = JSONResponse({"error": message}, status_code=status, headers=headers)
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": message[:120]})
        return
    await response(scope, receive, send)
