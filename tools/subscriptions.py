"""Tells clients that sessions changed: resources that they subscribed to, and the list of them, in both eras.

Clients of 2026-07-28 hold a ``subscriptions/listen`` request open; older ones send ``resources/subscribe`` and get
notifications on their connection. One watcher serves both, and rests while nobody listens. All is kept by principal:
nobody learns of changes to sessions that are not theirs, and a foreign address is as silent as one that is not there.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import anyio
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
)
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    EmptyResult,
    NotificationParams,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    UnsubscribeRequestParams,
)

from server.concurrency import background_tasks
from server.errors import RookeryError
from tools.addresses import session_of
from tools.backend import Backend

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.5
"""Shortest time between two notices of the same thing: an agent may write many events a second."""

POLL_S: Final = 2.0
"""How often it is looked for changes that other processes of the home have made."""

SEND_S: Final = 2.0
"""How long one client may take to read a notice, before it is told no more."""

MAX_ADDRESSES: Final = 256
"""Resources that one connection or stream may subscribe to."""

MAX_STREAMS: Final = 256
"""Streams that one principal may hold open."""

Context = ServerRequestContext[Any, Any]


@dataclass
class _Feed:
    """Who of one principal listens, and what they were told last."""

    bus: InMemorySubscriptionBus = field(default_factory=InMemorySubscriptionBus)
    streamed: Counter[str] = field(default_factory=Counter)
    """Addresses that open streams subscribed to."""
    streams: int = 0
    connections: dict[Connection, set[str]] = field(default_factory=dict)
    """Connections of the older era, with the addresses that each subscribed to."""
    seen: dict[str, int] = field(default_factory=dict)
    listed: str | None = None

    def __post_init__(self) -> None:
        self.listen = ListenHandler(self.bus, max_subscriptions=MAX_STREAMS)

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self.streams or self.connections)

    def addresses(self) -> set[str]:
        return set(self.streamed).union(*self.connections.values())


class Subscriptions:
    """Serves subscriptions on a server; :meth:`watching` must be entered by each of its connections, or once for all.

    Args:
        backend: where changes are learned of.
        principal: whose request this is.
    """

    def __init__(self, backend: Backend, principal: Callable[[Context], str]) -> None:
        self._backend = backend
        self._principal = principal
        self._feeds: dict[str, _Feed] = {}
        self._wanted = anyio.Event()
        self._watched = anyio.Lock()
        self._entered = 0

    def serve_on(self, protocol: Server[Any]) -> None:
        """Answer the requests of both eras."""
        protocol.add_request_handler("subscriptions/listen", SubscriptionsListenRequestParams, self._listen)
        protocol.add_request_handler("resources/subscribe", SubscribeRequestParams, self._subscribe)
        protocol.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe)
        protocol.add_notification_handler("notifications/initialized", NotificationParams, self._initialized)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch for changes and tell of them while the context lasts. Of several, one watches for all."""
        async with background_tasks() as tasks:
            tasks.start_soon(self._watch)
            self._entered += 1
            try:
                yield
            finally:
                self._entered -= 1
                if not self._entered:
                    self.drain()

    def drain(self) -> None:
        """End all streams that are open: their clients are told that it was meant, and listen elsewhere."""
        for feed in self._feeds.values():
            feed.listen.close()

    async def tell_all(self, event: ServerEvent) -> None:
        """Tell every open stream that asked for such an event: for what concerns everyone, as a list of tools does."""
        for feed in list(self._feeds.values()):
            await feed.bus.publish(event)

    # --- requests ---------------------------------------------------------------------------------------------

    async def _listen(self, ctx: Context, params: SubscriptionsListenRequestParams) -> SubscriptionsListenResult:
        wanted = set(params.notifications.resource_subscriptions or ())
        _check_count(len(wanted))
        principal = self._principal(ctx)
        with self._feed(principal) as feed:
            feed.streamed.update(wanted)
            feed.streams += 1
            try:
                await self._take_stock(principal, feed, wanted)
                return await feed.listen(ctx, params)
            finally:
                feed.streams -= 1
                feed.streamed -= Counter(wanted)

    async def _initialized(self, ctx: Context, _: NotificationParams) -> None:
        """From here on a connection of the older era is told when the list of sessions changes, if it may read it."""
        with suppress(MCPError):
            self._joined(ctx)

    async def _subscribe(self, ctx: Context, params: SubscribeRequestParams) -> EmptyResult:
        addresses = self._joined(ctx)
        _check_count(len(addresses) + 1)
        addresses.add(str(params.uri))
        principal = self._principal(ctx)
        with self._feed(principal) as feed:
            await self._take_stock(principal, feed, (str(params.uri),))
        return EmptyResult()

    async def _unsubscribe(self, ctx: Context, params: UnsubscribeRequestParams) -> EmptyResult:
        self._joined(ctx).discard(str(params.uri))
        return EmptyResult()

    def _joined(self, ctx: Context) -> set[str]:
        """What the request's connection subscribed to; it leaves when it closes."""
        # The SDK shows a handler the connection's channel, but not when it closes: this is its private name for that.
        connection = ctx.session._connection
        principal = self._principal(ctx)
        with self._feed(principal) as feed:
            known = feed.connections.get(connection)
            if known is None:
                known = feed.connections[connection] = set()
                connection.exit_stack.callback(self._leave, principal, connection)
            return known

    def _leave(self, principal: str, connection: Connection) -> None:
        feed = self._feeds.get(principal)
        if feed is not None:
            feed.connections.pop(connection, None)
            self._forget(principal, feed)

    async def _take_stock(self, principal: str, feed: _Feed, addresses: Iterable[str]) -> None:
        """Note where sessions stand before the subscription is confirmed: every change after it is told."""
        try:
            registry = await self._backend.registry()
            heads = await registry.heads(principal, list(_by_session(addresses)))
        except RookeryError as error:
            log.info("a subscription begins without knowing where its sessions stand: %s", error.code.value)
            return
        feed.listed = feed.listed or heads.listed
        for session_id, last in heads.sequences.items():
            feed.seen.setdefault(session_id, last)

    @contextmanager
    def _feed(self, principal: str) -> Iterator[_Feed]:
        feed = self._feeds.setdefault(principal, _Feed())
        self._wanted.set()
        try:
            yield feed
        finally:
            self._forget(principal, feed)

    def _forget(self, principal: str, feed: _Feed) -> None:
        if not feed.heard and self._feeds.get(principal) is feed:
            del self._feeds[principal]

    # --- the watcher ------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async with self._watched:
            while True:
                if not self._feeds:
                    self._wanted = anyio.Event()
                    await self._wanted.wait()
                try:
                    registry = await self._backend.registry()
                    for principal, feed in list(self._feeds.items()):
                        await self._look(principal, feed)
                    await registry.wait_for_any_change(POLL_S)
                except RookeryError as error:
                    log.info("changes cannot be looked for now: %s", error.code.value)
                    await anyio.sleep(POLL_S)
                await anyio.sleep(PAUSE_S)

    async def _look(self, principal: str, feed: _Feed) -> None:
        registry = await self._backend.registry()
        by_session = _by_session(feed.addresses())
        heads = await registry.heads(principal, list(by_session))
        for session_id, addresses in by_session.items():
            last = heads.sequences.get(session_id)
            if session_id in feed.seen and feed.seen[session_id] != last:
                await self._tell_updated(feed, addresses)
            if last is None:
                feed.seen.pop(session_id, None)
            else:
                feed.seen[session_id] = last
        for session_id in feed.seen.keys() - _by_session(feed.addresses()).keys():
            del feed.seen[session_id]
        changed, feed.listed = feed.listed not in (None, heads.listed), heads.listed
        if changed:
            await feed.bus.publish(ResourcesListChanged())
            for connection in list(feed.connections):
                await self._send(feed, connection, connection.send_resource_list_changed)

    async def _tell_updated(self, feed: _Feed, addresses: Iterable[str]) -> None:
        for address in addresses:
            await feed.bus.publish(ResourceUpdated(uri=address))
            for connection, subscribed in list(feed.connections.items()):
                if address in subscribed:
                    await self._send(feed, connection, partial(connection.send_resource_updated, address))

    async def _send(self, feed: _Feed, connection: Connection, send: Callable[[], Awaitable[None]]) -> None:
        """Send, within bounds: a client that does not read is told no more, so that the others are."""
        with anyio.move_on_after(SEND_S) as bound:
            await send()
        if bound.cancelled_caught:
            log.info("a client does not read what it subscribed to and is told no more")
            feed.connections.pop(connection, None)


def _by_session(addresses: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for address in addresses:
        if (session_id := session_of(address)) is not None:
            found.setdefault(session_id, set()).add(address)
    return found


def _check_count(count: int) -> None:
    if count > MAX_ADDRESSES:
        raise MCPError(
            code=INVALID_PARAMS,
            message=f"invalid_argument: at most {MAX_ADDRESSES} resources can be subscribed to at once.",
        )
