"""Streams that clients of the older protocol hold open for what the server may say unasked: they end when it leaves.

Nothing is under way in such a stream, yet a server that waits for all answers to be complete would wait for it, as
long as it gives to agents at work.
"""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Standing:
    """ASGI middleware: a ``GET`` of the MCP endpoint is such a stream.

    Args:
        app: what serves it.
        path: the endpoint's.
        draining: set when the server leaves; a stream sees its client leave then.
    """

    def __init__(self, app: ASGIApp, path: str, draining: anyio.Event) -> None:
        self._app = app
        self._path = path
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return

        async def until_drained() -> Message:
            received: Message = {"type": "http.disconnect"}

            async def take() -> None:
                nonlocal received
                received = await receive()
                waiting.cancel_scope.cancel()

            async with anyio.create_task_group() as waiting:
                waiting.start_soon(take)
                await self._draining.wait()
                waiting.cancel_scope.cancel()
            return received

        await self._app(scope, until_drained, send)
