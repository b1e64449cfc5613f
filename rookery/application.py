"""The composition root: builds one server process's parts and hands out its registry."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from server.checkpoints import Checkpoints
from server.clock import SYSTEM_CLOCK, Clock
from server.concurrency import background_tasks
from server.errors import ErrorCode, RookeryError
from server.gateway import Gateway, PriceBook, Upstream, anthropic_upstream
from server.registry import Registry
from server.registry import open_registry as open_sessions
from server.sandboxes.base import SandboxProvider
from server.services import Services
from server.settings import SandboxKind, Settings, UpstreamKind
from server.store import open_store


@asynccontextmanager
async def open_registry(settings: Settings, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Registry]:
    """Everything that a server process is made of, for as long as it serves.

    On leaving, agents are interrupted and their transcripts flushed, then the gateway settles its last requests, then
    the store closes.

    Raises:
        RookeryError: ``storage_unavailable``, ``sandbox_unavailable``, ``invalid_argument`` (a setting).
    """
    prepare_home(settings.home)
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
            checkpoints=Checkpoints(settings.home),
            clock=clock,
            server_id=clock.identifier("server"),
        )
        yield await stack.enter_async_context(open_sessions(services))


def make_provider(settings: Settings) -> SandboxProvider:
    """The sandbox provider that the settings name.

    Raises:
        RookeryError: ``sandbox_unavailable``: there is none of this kind. Never falls back to another.
    """
    if settings.sandbox is not SandboxKind.BUBBLEWRAP:
        raise RookeryError(
            ErrorCode.SANDBOX_UNAVAILABLE,
            f"This version makes no {settings.sandbox.value} sandboxes: set ROOKERY_SANDBOX=bubblewrap.",
        )
    from server.sandboxes.bubblewrap import BubblewrapProvider

    return BubblewrapProvider(settings.home, cli_path(settings))


def cli_path(settings: Settings) -> Path:
    """The Claude Code CLI: the setting's, else the one that the SDK brings. It may not exist; the provider checks."""
    if settings.cli_path is not None:
        return settings.cli_path
    # Looked up without importing the SDK, which takes half a second.
    found = importlib.util.find_spec("claude_agent_sdk")
    if found is None or found.origin is None:
        return Path("claude")
    return Path(found.origin).parent / "_bundled" / "claude"


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
    """The gateway on its socket, in a directory that only this user may enter and whose path is short enough."""
    directory = Path(tempfile.mkdtemp(prefix="rookery-"))
    try:
        async with background_tasks() as tasks:
            await tasks.start(gateway.serve, directory / "gateway.sock")
            yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
