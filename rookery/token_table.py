"""API tokens as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from server.models import NANO_USD, TokenRecord


def tokens_table(tokens: Sequence[TokenRecord]) -> Table:
    """One line for each token."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("Token", no_wrap=True, min_width=36)
    for name in ("Name", "Principal", "Scopes", "Budget", "State", "Used"):
        table.add_column(name)
    for token in tokens:
        table.add_row(
            token.id,
            escape(token.name),
            escape(token.principal),
            " ".join(scope.value for scope in token.scopes),
            "" if token.budget_nano_usd is None else f"${token.budget_nano_usd / NANO_USD:.2f}",
            _state(token, datetime.now(UTC)),
            "never" if token.used_at is None else f"{token.used_at:%Y-%m-%d %H:%M}",
        )
    return table


def _state(token: TokenRecord, now: datetime) -> str:
    if token.revoked_at is not None:
        return "[red]revoked[/]"
    if token.expires_at is None:
        return "[green]good[/]"
    if token.expires_at <= now:
        return "[red]expired[/]"
    return f"[green]good[/] until {token.expires_at:%Y-%m-%d %H:%M}"
