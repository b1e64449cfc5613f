"""API tokens."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from server.callers import Scope
from server.models.base import Record


class TokenRecord(Record):
    """An API token as the store keeps it: without its secret."""

    id: str
    name: str = Field(description="what people call it")
    principal: str = Field(description="whose sessions its holder sees")
    digest: str = Field(description="SHA-256 of the secret")
    scopes: tuple[Scope, ...]
    budget_nano_usd: int | None = Field(default=None, description="cap of all sessions that were spawned with it")
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    used_at: datetime | None = Field(default=None, description="last use, to within a minute or so")
