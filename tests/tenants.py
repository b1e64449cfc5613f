"""Helpers for tests with several tenants: tokens of a home, made as the command line makes them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

from server.callers import Scope
from server.clock import SYSTEM_CLOCK
from server.models import TokenRecord
from server.store import open_store
from server.tokens import Tokens
from tests.house import settings_for

AGENTS = (Scope.READ, Scope.RUN, Scope.APPROVE)


async def token(
    home: Path,
    name: str,
    scopes: Collection[Scope] = AGENTS,
    *,
    principal: str | None = None,
    expires_in: timedelta | None = None,
    budget_usd: float | None = None,
) -> tuple[TokenRecord, dict[str, str]]:
    """A new token of a home, and the header that shows it."""
    async with open_store(settings_for(home).store_url) as store:
        made, secret = await Tokens(store, SYSTEM_CLOCK).create(
            name, principal=principal, scopes=scopes, expires_in=expires_in, budget_usd=budget_usd
        )
    return made, {"authorization": f"Bearer {secret}"}


async def revoke(home: Path, made: TokenRecord) -> None:
    """Revoke a token of a home."""
    async with open_store(settings_for(home).store_url) as store:
        await Tokens(store, SYSTEM_CLOCK).revoke(made.id)
