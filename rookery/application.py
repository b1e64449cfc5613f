"""The composition root: builds one server process's parts and hands out its registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from rookery.provider import open_providers
from server.budgets import caps_of
from server.checkpoints import Checkpoints, ObjectStore
from server.clock import SYSTEM_CLOCK, Clock
from server.concurrency import background_tasks
from server.egress import EgressOptions, EgressProxy
from server.errors import ErrorCode, RookeryError
from server.gateway import Gateway, Upstream, anthropic_upstream, price_book
from server.leases import Leases
from server.registry import Registry
from server.registry import open_registry as open_sessions
from server.services import Services
from server.settings import Settings, UpstreamKind
from server.store import open_store
from server.telemetry.export import exporting
from server.telemetry.metrics import NO_METRICS, Metrics
from tools.delegation import Delegating


@asynccontextmanager
async def open_registry(
    settings: Settings,
    *,
    clock: Clock = SYSTEM_CLOCK,
    egress: EgressOptions | None = None,
    visiting: bool = False,
    metrics: Metrics = NO_METRICS,
) -> AsyncIterator[Registry]:
    """Everything that a server process is made of, for as long as it serves.

    Args:
        settings: its settings.
        clock: time, ids and randomness.
        egress: how the network is reached; given by tests only.
        visiting: whether this is a command that is over in a moment, and begins nothing by itself.
        metrics: told what happens.

    On leaving, agents are interrupted and their transcripts flushed, then the gateway settles its last requests, then
    the store closes.

    Raises:
        RookeryError: ``storage_unavailable``, ``sandbox_unavailable``, ``invalid_argument`` (a setting).
    """
    prepare_home(settings.home)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(exporting())
        server_id = clock.identifier("server")
        leases = Leases(settings.home, server_id)
        run_directory = _held(stack, leases)
        store = await stack.enter_async_context(open_store(settings.store_url, clock=clock))
        upstream = await stack.enter_async_context(_upstream(settings, run_directory))
        gateway = Gateway(
            upstream,
            store,
            price_book(settings),
            clock,
            budgets=store,
            caps=caps_of(settings),
            owner=server_id,
            fallbacks=settings.fallback_models,
            metrics=metrics,
        )
        tasks = await stack.enter_async_context(background_tasks())
        await tasks.start(gateway.serve, run_directory / "gateway.sock")
        delegating = Delegating()
        services = Services(
            settings=settings,
            store=store,
            gateway=gateway,
            egress=EgressProxy(tasks, egress or EgressOptions()),
            providers=await stack.enter_async_context(open_providers(settings)),
            checkpoints=Checkpoints(ObjectStore(settings.home / "objects"), settings.home / "indexes"),
            clock=clock,
            server_id=server_id,
            metrics=metrics,
            delegate=delegating,
        )
        async with open_sessions(services, leases, visiting=visiting) as registry:
            delegating.attach(registry)
            yield registry


def prepare_home(home: Path) -> None:
    """Make the home for this user alone.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RookeryError(
            ErrorCode.STORAGE_UNAVAILABLE,
            "The home directory cannot be made: set ROOKERY_HOME to a directory of yours.",
            detail=str(error),
        ) from error


def _held(stack: AsyncExitStack, leases: Leases) -> Path:
    """The server's run directory, held until the stack ends.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    try:
        return stack.enter_context(leases.hold())
    except OSError as error:
        raise RookeryError(
            ErrorCode.STORAGE_UNAVAILABLE,
            "The home or the temporary directory cannot be written: look at their permissions and at the disk.",
            detail=str(error),
        ) from error


@asynccontextmanager
async def _upstream(settings: Settings, run_directory: Path) -> AsyncIterator[Upstream]:
    if settings.upstream is UpstreamKind.ANTHROPIC:
        yield anthropic_upstream(settings)
        return
    from server.gateway.scripted import scripted_upstream

    async with scripted_upstream(settings, run_directory) as upstream:
        yield upstream
