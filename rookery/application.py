"""The composition root: builds one server process's parts, in the order in which they stand on each other."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import claude_agent_sdk

from server.checkpoints import Checkpoints, ObjectStore
from server.clock import SYSTEM_CLOCK, Clock
from server.errors import ErrorCode, RookeryError
from server.gateway import Gateway, PriceBook, Upstream, anthropic_upstream
from server.registry import Registry
from server.registry import open_registry as open_fleet
from server.sandboxes.base import SandboxProvider
from server.services import Services
from server.settings import SandboxKind, Settings, UpstreamKind
from server.store import open_store

BUNDLED_CLI: Final = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
"""The Claude Code CLI that comes with the SDK."""


def make_provider(settings: Settings) -> SandboxProvider:
    """The provider of sandboxes that the settings name.

    Raises:
        RookeryError: ``sandbox_unavailable``.
    """
    match settings.sandbox:
        case SandboxKind.BUBBLEWRAP:
            from server.sandboxes.bubblewrap import BubblewrapProvider

            return BubblewrapProvider(settings.home, settings.cli_path or BUNDLED_CLI)
        case SandboxKind.E2B:
            raise RookeryError(
                ErrorCode.SANDBOX_UNAVAILABLE,
                "This version has no E2B sandboxes yet: unset ROOKERY_SANDBOX to use bubblewrap on this machine.",
            )


@asynccontextmanager
async def open_registry(settings: Settings, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Registry]:
    """One server process: store, model, gateway, sandboxes and registry, until the context ends.

    Raises:
        RookeryError: ``storage_unavailable``, ``sandbox_unavailable``, ``invalid_argument`` (a setting).
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings.store_url, clock=clock))
        upstream = await stack.enter_async_context(_upstream(settings))
        gateway = Gateway(upstream, store, PriceBook(), clock)
        await stack.enter_async_context(_serving(gateway))
        services = Services(
            settings=settings,
            store=store,
            gateway=gateway,
            provider=make_provider(settings),
            checkpoints=Checkpoints(ObjectStore(settings.home / "objects"), settings.home / "indexes"),
            clock=clock,
            server_id=clock.identifier("srv"),
        )
        yield await stack.enter_async_context(open_fleet(services))


@asynccontextmanager
async def _upstream(settings: Settings) -> AsyncIterator[Upstream]:
    if settings.upstream is UpstreamKind.ANTHROPIC:
        yield anthropic_upstream(settings)
        return
    from server.gateway.scripted import scripted_upstream

    async with scripted_upstream(settings) as upstream:
        yield upstream


@asynccontextmanager
async def _serving(gateway: Gateway) -> AsyncIterator[None]:
    """The gateway on a socket in a directory of its own: short, for a socket's path holds 107 bytes at most."""
    directory = Path(tempfile.mkdtemp(prefix="rookery-"))
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(gateway.serve, directory / "gateway.sock")
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
