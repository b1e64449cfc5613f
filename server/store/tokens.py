"""API tokens: who may call over HTTP. Only hashes are kept."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, insert, or_, select, update

from server.models import TokenRecord
from server.store.room import Room, changed_one, columns, execute, record
from server.store.tables import tokens

USE_NOTED_EVERY: Final = timedelta(minutes=1)
"""Writing down each use of a token would make every read a write."""


class Tokens(Room):
    """Tokens of all principals."""

    async def create_token(self, token: TokenRecord) -> None:
        """Enter a token.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        await self._database.write(execute, insert(tokens).values(columns(token)))

    async def tokens(self, principal: str | None = None) -> list[TokenRecord]:
        """All tokens, or one principal's, oldest first; revoked and expired ones too."""
        query = select(tokens).order_by(tokens.c.created_at, tokens.c.id)
        if principal is not None:
            query = query.where(tokens.c.principal == principal)
        return await self._database.read(
            lambda connection: [record(TokenRecord, row) for row in connection.execute(query)]
        )

    async def token_by_digest(self, digest: str) -> TokenRecord | None:
        """The token of a hash, whatever its state."""
        query = select(tokens).where(tokens.c.digest == digest)

        def body(connection: Connection) -> TokenRecord | None:
            row = connection.execute(query).first()
            return None if row is None else record(TokenRecord, row)

        return await self._database.read(body)

    async def revoke_token(self, token_id: str) -> bool:
        """Revoke a token for good; False when there is no such token, or it was revoked before."""
        query = update(tokens).where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
        return await self._database.write(changed_one, query.values(revoked_at=self._now()))

    async def note_use(self, token: TokenRecord, at: datetime) -> None:
        """Write down that a token is in use, once in a while."""
        if token.used_at is not None and at - token.used_at < USE_NOTED_EVERY:
            return
        stale = or_(tokens.c.used_at.is_(None), tokens.c.used_at < at - USE_NOTED_EVERY)
        await self._database.write(execute, update(tokens).where(tokens.c.id == token.id, stale).values(used_at=at))
