"""Checks what Rookery needs on this machine and says, for each thing that is missing, what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio.to_thread
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rookery.provider import probe_providers
from server.errors import RookeryError
from server.sandboxes.base import Check
from server.settings import UpstreamKind

if TYPE_CHECKING:
    from server.settings import Settings

FREE_MB: Final = 1024
"""Free space below which a home is called full: one agent with its transcript and a small project needs it."""

CREDENTIALS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")


async def run_doctor(settings: Settings, sandbox_only: bool, console: Console | None = None) -> int:
    """Print all findings; 0 when nothing stands in the way, else 1.

    Args:
        sandbox_only: check only what agents need to run at all, and print only what is wrong.
    """
    console = console or Console()
    checks = await sandbox_checks(settings)
    if not sandbox_only:
        checks += [await _home(settings), await _store(settings), credential_check(settings)]
    failed = [check for check in checks if not check.ok]
    if failed or not sandbox_only:
        console.print(_table(checks))
    for check in checks if not sandbox_only else failed:
        if check.remedy:
            style = "yellow" if check.ok else "red"
            console.print(f"\n[{style}]{escape(check.name)}[/]: {escape(check.found)}. Remedy:", highlight=False)
            console.print(f"  {escape(check.remedy)}", highlight=False, soft_wrap=True)
    if not failed and not sandbox_only:
        console.print("\n[green]Everything is in place.[/]")
    return 1 if failed else 0


async def sandbox_checks(settings: Settings) -> list[Check]:
    """What the sandbox providers find."""
    return await probe_providers(settings)


def credential_check(settings: Settings) -> Check:
    """Whether there is something to pay the model with."""
    if settings.upstream is UpstreamKind.SCRIPTED:
        return Check("credential", True, "not needed: the model is scripted (ROOKERY_UPSTREAM)")
    found = [name for name in CREDENTIALS if getattr(settings, name.lower()) is not None]
    if not found:
        return Check(
            "credential",
            False,
            f"none of {', '.join(CREDENTIALS)} is set",
            "export ANTHROPIC_API_KEY=…   (without one, `rookery demo` plays a scripted model)",
        )
    return Check("credential", True, f"{found[0]} is set")


async def _home(settings: Settings) -> Check:
    return await anyio.to_thread.run_sync(_look_at_home, settings.home)


def _look_at_home(home: Path) -> Check:
    remedy = "export ROOKERY_HOME=/path/to/a/directory/of/yours"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        free_mb = shutil.disk_usage(home).free >> 20
    except OSError as error:
        return Check("home", False, f"{home}: {error.strerror}", remedy)
    if not os.access(home, os.W_OK | os.X_OK):
        return Check("home", False, f"{home} cannot be written", remedy)
    if free_mb < FREE_MB:
        return Check("home", False, f"{home} has {free_mb:,} MiB free", "rookery sessions prune, or free some space")
    return Check("home", True, f"{home}, {free_mb:,} MiB free")


async def _store(settings: Settings) -> Check:
    from server.store import open_store

    try:
        async with open_store(settings.store_url):
            pass
    except RookeryError as error:
        return Check("store", False, error.message, "Look at ROOKERY_DATABASE_URL, or move the database file away.")
    return Check("store", True, "SQLite" if settings.store_url.startswith("sqlite") else "Postgres")


def _table(checks: list[Check]) -> Table:
    table = Table("", "Check", "Found")
    for check in checks:
        table.add_row("[green]✓[/]" if check.ok else "[red]✗[/]", escape(check.name), escape(check.found))
    return table
