"""``rookery e2b``: the template that E2B sandboxes are made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import anyio
import typer

from rookery.configuration import load_settings

if TYPE_CHECKING:
    from server.settings import Settings

e2b_app = typer.Typer(no_args_is_help=True, help="Prepare the E2B account for agents.")

RECORD: Final = "e2b-template.json"
"""File of the home that says which template was built last."""


@e2b_app.callback()
def _group() -> None:
    """Keep the subcommand's name, though it is the only one."""


@e2b_app.command()
def build(
    name: Annotated[str | None, typer.Option(help="Name of the template; default: ROOKERY_E2B_TEMPLATE.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if nothing changed.")] = False,
) -> None:
    """Build the template: Node, git, ripgrep, Python, the agent's CLI and the relay. Does nothing if it is there."""
    from server.errors import RookeryError

    settings = load_settings()
    try:
        anyio.run(_build, settings, name or settings.e2b_template, force)
    except RookeryError as error:
        typer.echo(f"{error.code}: {error.message}", err=True)
        if error.detail:
            typer.echo(error.detail, err=True)
        raise typer.Exit(1) from error


async def _build(settings: Settings, name: str, force: bool) -> None:
    from rookery.provider import e2b_options
    from server.agent.launch import BUNDLED_CLI_VERSION
    from server.sandboxes.e2b.cloud import Cloud
    from server.sandboxes.e2b.template import TemplatePlan, build_template

    cloud = Cloud(e2b_options(settings))
    plan = TemplatePlan(name, BUNDLED_CLI_VERSION, max(1, round(settings.cpus)), settings.memory_mb)
    record = settings.home / RECORD
    if not force and _recorded(record) == {"name": name, "digest": plan.digest} and await cloud.template_exists(name):
        typer.echo(f"The template {name} is up to date.")
        return
    identity = await build_template(cloud, plan, say=typer.echo)
    record.write_text(json.dumps({"name": name, "digest": plan.digest}), encoding="utf-8")
    typer.echo(f"Built {name} ({identity}) with Claude Code {plan.cli_version}.")
    if name != settings.e2b_template:
        typer.echo(f"Use it with: export ROOKERY_E2B_TEMPLATE={name}")


def _recorded(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
