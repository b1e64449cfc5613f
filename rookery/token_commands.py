"""``rookery tokens``: who may call over HTTP. Each command imports what it needs when it runs."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import anyio
import typer

from rookery.configuration import USAGE_ERROR, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from rookery.administration import Command

tokens_app = typer.Typer(no_args_is_help=True, help="Make API tokens for HTTP clients, list them, revoke them.")

DEFAULT_SCOPES: Final = "agents:read,agents:run,agents:approve"

_DURATION: Final = re.compile(r"(\d{1,6})([hdw])")
_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}


@tokens_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    principal: Annotated[
        str | None, typer.Option(help="Whose sessions its holder sees; by default a tenant of the token's name.")
    ] = None,
    scopes: Annotated[
        str, typer.Option(help="What it allows, comma separated: agents:read, agents:run, agents:approve, admin.")
    ] = DEFAULT_SCOPES,
    expires: Annotated[str | None, typer.Option(help="How long it is good for, as 12h, 30d or 8w.")] = None,
    budget: Annotated[
        float | None, typer.Option(min=0.000001, help="Dollars that all sessions spawned with it may spend together.")
    ] = None,
) -> None:
    """Make a token. Its secret is shown once and kept nowhere."""
    from server.callers import Scope

    wanted = {word.strip() for word in scopes.split(",") if word.strip()}
    unknown = wanted - set(Scope)
    if unknown:
        _fail(f"There is no scope {', '.join(sorted(unknown))}; the scopes are {', '.join(Scope)}.")
    lasts = None if expires is None else _DURATION.fullmatch(expires)
    if expires is not None and lasts is None:
        _fail(f"--expires takes a number with h, d or w, as 30d; not {expires}.")

    async def command(registry: Any, console: Console) -> None:
        token, secret = await registry.tokens.create(
            name,
            principal=principal,
            scopes={Scope(word) for word in wanted},
            expires_in=None if lasts is None else timedelta(**{_UNITS[lasts[2]]: int(lasts[1])}),
            budget_usd=budget,
        )
        console.print(f"Token {token.id} for {token.principal}. This is its secret; it is not shown again:")
        console.out(secret, highlight=False)

    _run(command)


@tokens_app.command("list")
def list_tokens(principal: Annotated[str | None, typer.Option(help="Only this one's.")] = None) -> None:
    """List all tokens, without their secrets."""

    async def command(registry: Any, console: Console) -> None:
        from rookery.token_table import tokens_table

        tokens = await registry.tokens.all(principal)
        console.print(tokens_table(tokens) if tokens else "No tokens.")

    _run(command)


@tokens_app.command("revoke")
def revoke(token_id: str) -> None:
    """Make a token useless from its next request on. What runs goes on."""

    async def command(registry: Any, console: Console) -> None:
        await registry.tokens.revoke(token_id)
        console.print(f"Token {token_id} is revoked.")

    _run(command)


def _run(command: Command) -> None:
    from rookery import administration
    from server.telemetry import configure_logging

    settings = load_settings()
    configure_logging("error")
    raise typer.Exit(anyio.run(administration.run, settings, command))


def _fail(message: str) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(USAGE_ERROR)
