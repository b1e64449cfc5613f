"""E2B providers for tests: real ones, on the double or the cloud."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from server.sandboxes.e2b.options import E2BOptions
from server.sandboxes.e2b.provider import E2BProvider
from tests.e2b_cloud.handle import E2BCloud


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
