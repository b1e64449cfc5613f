"""E2B providers for tests: real ones, on the double or the cloud."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from server.sandboxes.base import SandboxSpec
from server.sandboxes.e2b.options import E2BOptions
from server.sandboxes.e2b.provider import E2BProvider, open_e2b
from server.sandboxes.e2b.sandbox import E2BSandbox
from tests.e2b_cloud.handle import E2BCloud
from tests.sandboxes import gateway_socket, spec_for


def options_for(cloud: E2BCloud, **given: object) -> E2BOptions:
    """An account at the double, or in the cloud, with a home of its own."""
    bounds = {} if cloud.live else {"concurrency": 1000, "creations_per_s": 1000.0}
    return E2BOptions(
        api_key=cloud.api_key,
        home_id=f"home-{secrets.token_hex(6)}",
        api_url=cloud.api_url,
        sandbox_url=cloud.sandbox_url,
        **{"template": "claude", **bounds, **given},  # type: ignore[arg-type]
    )


@asynccontextmanager
async def in_one_task(context: AbstractAsyncContextManager[E2BProvider]) -> AsyncIterator[E2BProvider]:
    """A context entered and left by one task, as task groups need it: pytest sets up and tears down in two."""
    made: asyncio.Future[E2BProvider] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def hold() -> None:
        async with context as provider:
            made.set_result(provider)
            await over.wait()

    holding = asyncio.create_task(hold())
    either: list[asyncio.Future[Any]] = [holding, made]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not made.done():
        await holding
    try:
        yield made.result()
    finally:
        over.set()
        await holding


@pytest.fixture
async def e2b_provider(e2b_cloud: E2BCloud) -> AsyncIterator[E2BProvider]:
    """A provider on the double, or the cloud."""
    async with in_one_task(open_e2b(options_for(e2b_cloud))) as provider:
        yield provider


@pytest.fixture
def e2b_spec() -> Iterator[SandboxSpec]:
    """Of a sandbox for one test."""
    with gateway_socket() as gateway:
        yield spec_for(gateway)


@pytest.fixture
async def e2b_sandbox(e2b_provider: E2BProvider, e2b_spec: SandboxSpec) -> AsyncIterator[E2BSandbox]:
    """A sandbox for one test."""
    sandbox = await e2b_provider.create(e2b_spec)
    yield sandbox
    await sandbox.destroy()
