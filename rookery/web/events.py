"""``/v1/sessions/{id}/events``: a session's log for programs, as server-sent events and over a WebSocket.

The log is numbered without gaps and kept in the store, so a stream is a read of it from wherever the reader says, for
as long as the reader likes. Nothing is queued for a reader: the next page is read when the last one was taken, and one
who takes nothing for :data:`SEND_S` is dropped, and goes on later from the number where it was.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

import anyio
from starlette.datastructures import Headers, QueryParams
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from rookery.web.guard import refuse
from rookery.web.protocol import ABORT
from server.callers import Caller
from server.callers import Scope as CallerScope
from server.errors import ErrorCode, RookeryError
from server.models import Event, EventKind, SessionState
from tools.backend import Backend, Registry
from tools.cleaning import guarded_json
from tools.identity import SCOPE_KEY

PAGE: Final = 20
"""Events read at once; with the longest text of one it bounds what a reader keeps in memory."""

BEAT_S: Final = 15.0
"""A quiet stream says that it lives this often, for the sake of proxies."""

SEND_S: Final = 30.0
"""Longest that a reader may leave a page lying."""

LIFE_S: Final = 3600.0
"""Then a stream ends and its reader connects again: a credential that is not good any more reads no longer."""

MAX_STREAMS: Final = 500
"""Streams of one principal at once."""

MAX_CURSOR: Final = 2**53

_STATUS: Final = {
    ErrorCode.SESSION_NOT_FOUND: 404,
    ErrorCode.INVALID_ARGUMENT: 400,
    ErrorCode.POLICY_DENIED: 403,
    ErrorCode.TOO_MANY_SESSIONS: 429,
    ErrorCode.STORAGE_UNAVAILABLE: 503,
    ErrorCode.TIMEOUT: 503,
}

ENDED: Final = "ended"
GONE: Final = "gone"
AGAIN: Final = "again"


async def follow(registry: Registry, principal: str, session_id: str, after: int) -> AsyncGenerator[Sequence[Event]]:
    """The events of a session behind a number, in pages, as they come; an empty page while nothing does.

    Ends once the session has ended and all of its log was given.

    Raises:
        RookeryError: ``session_not_found``, also when the session is deleted meanwhile; ``storage_unavailable``.
    """
    # The state is looked at before the page: what ends the session is an event, and so on that page.
    over = (await registry.outcome(principal, session_id)).state.is_terminal
    while True:
        page = await registry.transcript(principal, session_id, after=after, limit=PAGE)
        after = page.cursor
        over = over or any(_ends(event) for event in page.events)
        if page.events or not over:
            yield page.events
        if page.more:
            continue
        if over:
            return
        await registry.wait_for_change(principal, [session_id], {session_id: after}, BEAT_S)


def _ends(event: Event) -> bool:
    return event.kind is EventKind.STATE and event.data.get("to") in (SessionState.ENDED, SessionState.FAILED)


@dataclass
class EventStreams:
    """Serves the streams.

    Args:
        backend: whose registry has the sessions.
        caller: who reads when a request carries no identity; None when each must carry one.
    """

    backend: Backend
    caller: Caller | None
    _open: Counter[str] = field(default_factory=Counter)
    _scopes: set[anyio.CancelScope] = field(default_factory=set)
    _draining: bool = False

    def routes(self) -> list[BaseRoute]:
        """The two routes, at one path."""
        path = "/v1/sessions/{session_id}/events"
        http = Route(path, _Endpoint(self._server_sent), methods=["GET"])
        http.methods = {"GET"}  # a stream has no head alone
        return [http, WebSocketRoute(path, _Endpoint(self._websocket))]

    def drain(self) -> None:
        """End all streams; their readers go on elsewhere from where they were."""
        self._draining = True
        for scope in list(self._scopes):
            scope.cancel()

    async def _server_sent(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._serve(scope, receive, send, _ServerSentEvents(scope, receive, send))

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._serve(scope, receive, send, _WebSocket(scope, receive, send))

    async def _serve(self, scope: Scope, receive: Receive, send: Send, reader: _Reader) -> None:
        session_id = scope["path_params"]["session_id"]
        try:
            caller = self._reader_of(scope)
            after = _after(scope)
            registry = await self.backend.registry()
            await registry.transcript(caller.principal, session_id, after=after, limit=1)
        except RookeryError as error:
            await refuse(scope, receive, send, _STATUS.get(error.code, 500), str(error))
            return
        self._open[caller.principal] += 1
        try:
            with anyio.move_on_after(LIFE_S) as serving:
                self._scopes.add(serving)
                try:
                    await _deliver(reader, follow(registry, caller.principal, session_id, after))
                finally:
                    self._scopes.discard(serving)
            if serving.cancelled_caught:
                await reader.leave(AGAIN, 1001)
        finally:
            self._open[caller.principal] -= 1
            if not self._open[caller.principal]:
                del self._open[caller.principal]

    def _reader_of(self, scope: Scope) -> Caller:
        """Who reads.

        Raises:
            RookeryError: they may not.
        """
        found = scope.get(SCOPE_KEY, self.caller)
        if not isinstance(found, Caller):
            raise RookeryError(ErrorCode.INTERNAL, "The request carries no identity, so nothing was done.")
        found.require(CallerScope.READ)
        if self._draining:
            raise RookeryError(ErrorCode.TIMEOUT, "The server is going away; connect again in a moment.")
        if self._open[found.principal] >= MAX_STREAMS:
            raise RookeryError(
                ErrorCode.TOO_MANY_SESSIONS, f"{MAX_STREAMS} streams of this account are open already; close some."
            )
        return found


def _after(scope: Scope) -> int:
    """Where the reader goes on: what it saw last before it was cut off, else what it asks for.

    Raises:
        RookeryError: ``invalid_argument``.
    """
    given = Headers(scope=scope).get("last-event-id") or QueryParams(scope["query_string"]).get("after") or "0"
    if not (given.isascii() and given.isdecimal() and len(given) <= 16 and int(given) <= MAX_CURSOR):
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, "after: the number of an event, or 0 for all.")
    return int(given)


async def _deliver(reader: _Reader, pages: AsyncGenerator[Sequence[Event]]) -> None:
    """Give a reader all pages until there are no more, it leaves, or it takes too long."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_until_left, reader, tasks.cancel_scope)
        try:
            with anyio.fail_after(SEND_S):
                await reader.accept()
            async with aclosing(pages):
                async for page in pages:
                    with anyio.fail_after(SEND_S):
                        await reader.give(page)
            await reader.leave(ENDED, 1000)
        except RookeryError as error:
            gone = error.code is ErrorCode.SESSION_NOT_FOUND
            await reader.leave(GONE if gone else error.code.value, 1000 if gone else 1011)
        except (TimeoutError, OSError):
            reader.drop()
        tasks.cancel_scope.cancel()


async def _until_left(reader: _Reader, scope: anyio.CancelScope) -> None:
    await reader.left()
    scope.cancel()


class _Reader(ABC):
    """One who reads a stream."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send

    @abstractmethod
    async def accept(self) -> None:
        """Begin the answer."""

    @abstractmethod
    async def give(self, page: Sequence[Event]) -> None:
        """Give a page; an empty one says that the stream lives."""

    @abstractmethod
    async def leave(self, why: str, code: int) -> None:
        """End the answer."""

    def drop(self) -> None:
        """Cut off one who reads no more, with what it has not read."""
        self._scope["state"][ABORT]()

    async def left(self) -> None:
        """Wait until the reader has gone."""
        while (await self._receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
            pass


class _ServerSentEvents(_Reader):
    async def accept(self) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def give(self, page: Sequence[Event]) -> None:
        text = "".join(f"id: {event.seq}\ndata: {guarded_json(event)}\n\n" for event in page) or ": alive\n\n"
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    async def leave(self, why: str, code: int) -> None:
        text = f"event: end\ndata: {json.dumps({'why': why})}\n\n"
        with anyio.move_on_after(1, shield=True):
            await self._send({"type": "http.response.body", "body": text.encode(), "more_body": False})


class _WebSocket(_Reader):
    async def accept(self) -> None:
        await self._send({"type": "websocket.accept"})

    async def give(self, page: Sequence[Event]) -> None:
        # A quiet WebSocket is kept alive by its own pings.
        for event in page:
            await self._send({"type": "websocket.send", "text": guarded_json(event)})

    async def leave(self, why: str, code: int) -> None:
        with anyio.move_on_after(1, shield=True):
            await self._send({"type": "websocket.close", "code": code, "reason": why})


class _Endpoint:
    """An ASGI application as an endpoint: Starlette would take a method for a function of a request."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
