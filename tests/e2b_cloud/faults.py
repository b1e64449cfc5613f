"""Faults of the double: what a test can make go wrong, and where.

A fault applies to requests whose ``METHOD /path`` matches a pattern, at one of the two origins.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Origin = Literal["control", "envd"]
Kind = Literal["status", "slow", "hang", "drop", "lost_reply", "kill"]


class BrokenConnectionError(Exception):
    """The connection is to break off here; the server closes it without an end."""


@dataclass
class Fault:
    """One fault.

    ``status``: answer with ``status``, ``headers`` and ``body`` and do nothing. ``slow``: wait ``seconds`` first.
    ``hang``: never answer. ``drop``: break the connection off after ``after_bytes`` of the body were sent.
    ``lost_reply``: do it, then break off without an answer. ``kill``: the sandbox dies first.
    """

    origin: Origin
    match: str
    kind: Kind
    times: int | None = 1
    """How many requests it strikes; None: all."""
    skip: int = 0
    """Requests that pass before."""
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    seconds: float = 0.0
    after_bytes: int = 0
    struck: int = 0

    def strikes(self, origin: Origin, request: str) -> bool:
        """Whether it strikes this request; counts."""
        if origin != self.origin or not re.search(self.match, request):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.struck >= self.times:
            return False
        self.struck += 1
        return True


class Faults:
    """All faults in force."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """None from now on."""
        self.rules: list[Fault] = []
        self.requests: list[str] = []
        """Every request that came: origin, method, path."""
        self.half_restored: list[str] = []
        """Below these paths the newest half of the files is lost at the next resume."""
        self.lost: list[str] = []
        """What was lost by that."""
        self.wedged_subscribers = False
        """A client that leaves stays subscribed and takes nothing, as a half-open connection does."""
        self.silent_pause = False
        """A pause leaves the streams open, and silent for ever."""

    def wrap(self, origin: Origin, app: App, kill: Callable[[str], Awaitable[None]]) -> App:
        """The application with its faults."""

        async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            request = f"{scope['method']} {scope['path']}"
            self.requests.append(f"{origin} {request}")
            for fault in list(self.rules):
                if fault.strikes(origin, request):
                    await self._strike(fault, app, scope, receive, send, kill)
                    return
            await app(scope, receive, send)

        return faulty

    async def _strike(
        self, fault: Fault, app: App, scope: Scope, receive: Receive, send: Send, kill: Callable[[str], Awaitable[None]]
    ) -> None:
        """Answer a request that a fault struck."""
        match fault.kind:
            case "status":
                while (await receive()).get("more_body"):
                    pass
                headers = [(name.lower().encode(), value.encode()) for name, value in fault.headers.items()]
                await send({"type": "http.response.start", "status": fault.status, "headers": headers})
                await send({"type": "http.response.body", "body": fault.body.encode()})
            case "slow":
                await asyncio.sleep(fault.seconds)
                await app(scope, receive, send)
            case "hang":
                while (await receive())["type"] != "http.disconnect":
                    pass
            case "kill":
                for name, value in scope["headers"]:
                    if name == b"e2b-sandbox-id":
                        await kill(value.decode())
                await app(scope, receive, send)
            case "lost_reply":
                await app(scope, receive, swallow)
                break_off(send)
            case "drop":
                await app(scope, receive, dropping(send, fault.after_bytes))


def break_off(send: Send) -> None:
    """End the connection of a request without any answer; uvicorn has no other way than its own transport."""
    cycle: Any = getattr(send, "__self__", None)
    cycle.transport.abort()


async def swallow(message: MutableMapping[str, Any]) -> None:
    """An answer that never arrives."""


def dropping(send: Send, after_bytes: int) -> Send:
    """Send until so many bytes of the body are out, then break off."""
    sent = 0

    async def limited(message: MutableMapping[str, Any]) -> None:
        nonlocal sent
        body = message.get("body", b"")
        if message["type"] == "http.response.body" and sent + len(body) > after_bytes:
            if part := body[: max(0, after_bytes - sent)]:
                await send({**message, "body": part, "more_body": True})
            sent = after_bytes
            raise BrokenConnectionError
        sent += len(body)
        await send(message)

    return limited
