"""``rookery serve --http``: streamable HTTP for many clients, on an address or a Unix socket."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio
import uvicorn

from rookery.serving.background import background, drained, log_to_stderr
from rookery.serving.offering import server_for
from rookery.web.addresses import Address, Names
from rookery.web.app import build_app
from rookery.web.events import EventStreams
from rookery.web.health import Health
from rookery.web.protocol import ClientProtocol
from rookery.web.scrape import Scrape
from server.callers import LOCAL
from server.telemetry.prometheus import PrometheusMetrics
from tools.subscriptions import Subscriptions

if TYPE_CHECKING:
    from server.settings import Settings

MAX_HEARD_BYTES: Final = 65_536
"""Longest message that a WebSocket client may send; none is listened to."""

KEEP_ALIVE_S: Final = 15
"""How long a connection without a request is kept."""


def run_http(settings: Settings, address: Address, *, announce: Callable[[str], None]) -> None:
    """The command ``rookery serve --http``; see :func:`serve_http`."""
    log_to_stderr()
    anyio.run(functools.partial(serve_http, settings, address, announce=announce))


def objection(settings: Settings, address: Address) -> str | None:
    """Why an address must not be served with these settings; None when it may be (row P09)."""
    if not address.is_private and not settings.auth:
        return (
            f"{address.host} can be reached by others, and nothing asks them who they are: set ROOKERY_AUTH=true "
            "(`rookery tokens create` makes a token), or serve the loopback (127.0.0.1, ::1) or a Unix socket."
        )
    if address.is_wildcard and settings.public_url is None:
        return (
            f"{address.host} is no name: set ROOKERY_PUBLIC_URL to the URL that clients use, as in "
            "https://agents.example.com, so that requests to other names can be refused."
        )
    return None


async def serve_http(settings: Settings, address: Address, *, announce: Callable[[str], None]) -> None:
    """Serve any number of clients over streamable HTTP until a signal comes.

    The first signal drains: nothing new is taken, and what is under way may finish within ``ROOKERY_DRAIN_S``. The
    second ends it at once.

    Args:
        address: where; one that :func:`objection` has nothing against.
        announce: told the URL once clients can connect.

    Raises:
        OSError: the address cannot be had.
        ValueError: the address must not be served with these settings.
    """
    against = objection(settings, address)
    if against is not None:
        raise ValueError(against)
    http: _Server | None = None
    streams: EventStreams | None = None
    subscriptions: Subscriptions | None = None
    draining = anyio.Event()

    def leave() -> None:
        draining.set()
        if subscriptions is not None:
            subscriptions.drain()
        if streams is not None:
            streams.drain()
        if http is not None:
            http.leave()

    with address.listening() as listener:
        metrics = PrometheusMetrics()
        async with background(settings, on_signal=leave, metrics=metrics) as (backend, _):
            health = Health(backend)
            scrape = Scrape(backend, metrics)
            # With authentication each request brings its caller, and one that does not is served nothing.
            caller = None if settings.auth else LOCAL
            server = server_for(settings, backend, caller=caller, on_failure=backend.failed)
            names = Names.of(address, settings.public_url, settings.allowed_origins)
            streams, subscriptions = EventStreams(backend, caller), server.subscriptions
            beside = [*health.routes(), *scrape.routes(), *streams.routes()]
            app = build_app(server, settings, names, beside, address.url(listener), draining)
            http = _Server(app, settings, health)
            backend.start()
            announce(address.url(listener))
            await http.serve(sockets=[listener])
            if not http.force_exit:
                await drained(backend, http.drain_left_s)


class _Server(uvicorn.Server):
    """Uvicorn, ended by us: it would take signals for itself and raise them again before the registry has closed."""

    def __init__(self, app: object, settings: Settings, health: Health) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                http=ClientProtocol,
                ws="websockets-sansio",
                ws_max_size=MAX_HEARD_BYTES,
                ws_per_message_deflate=False,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=settings.http_connections,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(settings.drain_s)),
            )
        )
        self._health = health
        self._drain_s = settings.drain_s
        self._drains_since = math.inf

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    @property
    def drain_left_s(self) -> float:
        """How long what is under way may still go on."""
        return max(0.0, self._drains_since + self._drain_s - time.monotonic())

    def leave(self) -> None:
        """Drain; called again, end at once."""
        self._health.draining = True
        self._drains_since = min(self._drains_since, time.monotonic())
        self.force_exit = self.should_exit
        self.should_exit = True
