"""API tokens: made for a principal, shown once, checked at each request, revoked at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from datetime import timedelta
from typing import Final

from server.callers import Caller, Scope
from server.clock import Clock
from server.errors import ErrorCode, RookeryError
from server.models import NANO_USD, TokenRecord
from server.store import Store

PREFIX: Final = "rky_"
"""Begins each token, so that scanners for leaked secrets and people know one when they see it."""

PRINCIPAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
"""Principals of tokens. Those of OAuth contain a colon, so no token can be made for one of them."""

_SECRET: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")


MAX_BUDGET_USD: Final = 1_000_000
"""Largest budget of a token."""

MAX_LIFE: Final = timedelta(days=36_500)
"""Longest that a token can be made for."""


class Tokens:
    """The tokens of one store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(
        self,
        name: str,
        *,
        principal: str | None = None,
        scopes: Collection[Scope] = (Scope.READ, Scope.RUN, Scope.APPROVE),
        expires_in: timedelta | None = None,
        budget_usd: float | None = None,
    ) -> tuple[TokenRecord, str]:
        """Make a token; its record, and the secret, which is kept nowhere.

        Args:
            name: what people call it.
            principal: whose sessions its holder sees; by default those of a principal with the token's name.
            scopes: what it allows.
            expires_in: how long it is good for; None: until it is revoked.
            budget_usd: the most that all sessions spawned with it may spend together.

        Raises:
            RookeryError: ``invalid_argument``, ``storage_unavailable``.
        """
        owner = name if principal is None else principal
        if not PRINCIPAL.fullmatch(owner):
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT,
                "A principal is of letters, digits and . _ @ -, and begins with a letter or digit.",
            )
        if not scopes:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "A token without any scope allows nothing: name one.")
        if budget_usd is not None and not 0 < budget_usd <= MAX_BUDGET_USD:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"A token's budget is of ${MAX_BUDGET_USD:,} at most.")
        if expires_in is not None and expires_in > MAX_LIFE:
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT,
                f"A token is good for {MAX_LIFE.days:,} days at most; without an end until it is revoked.",
            )
        now = self._clock.now()
        secret = PREFIX + self._clock.secret()
        token = TokenRecord(
            id=self._clock.identifier("tok"),
            name=name,
            principal=owner,
            digest=_digest(secret),
            scopes=tuple(sorted(scopes)),
            budget_nano_usd=None if budget_usd is None else round(budget_usd * NANO_USD),
            created_at=now,
            expires_at=None if expires_in is None else now + expires_in,
        )
        await self._store.create_token(token)
        return token, secret

    async def all(self, principal: str | None = None) -> list[TokenRecord]:
        """All tokens, or one principal's, oldest first."""
        return await self._store.tokens(principal)

    async def revoke(self, token_id: str) -> None:
        """Make a token useless from the next request on.

        Raises:
            RookeryError: ``invalid_argument``: there is no such token, or it is revoked already.
        """
        if not await self._store.revoke_token(token_id):
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT,
                "There is no such token that is still good; see `rookery tokens list`.",
            )

    async def caller(self, secret: str) -> Caller | None:
        """Who shows this secret; None when it is no token, or not good any more.

        The look-up is by hash, so its time tells nothing about the tokens that there are.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        if not _SECRET.fullmatch(secret):
            return None
        token = await self._store.token_by_digest(_digest(secret))
        now = self._clock.now()
        if token is None or token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now):
            return None
        await self._store.note_use(token, now)
        return Caller(token.principal, frozenset(token.scopes), token.id)


def _digest(secret: str) -> str:
    """A token is a random value of 256 bits, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()
