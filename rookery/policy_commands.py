"""The commands on approvals, the audit and policies. Each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import anyio
import typer

from rookery.configuration import USAGE_ERROR, load_settings

if TYPE_CHECKING:
    from policies import Policy
    from rookery.administration import Command
    from server.settings import Settings

approvals_app = typer.Typer(no_args_is_help=True, help="Look at questions of policies, and answer them.")
policy_app = typer.Typer(no_args_is_help=True, help="Check policies, ask what they decide, compare them.")


@approvals_app.command("list")
def approvals_list(session_id: Annotated[str | None, typer.Argument(help="One session's only.")] = None) -> None:
    """List the tool calls that wait for a decision, oldest first."""
    from rookery import policing

    _run(load_settings(), policing.list_approvals(session_id))


@approvals_app.command("answer")
def approvals_answer(
    approval_id: str,
    allow: Annotated[bool, typer.Option("--allow/--deny", help="Whether the call may run.")],
    note: Annotated[str, typer.Option(help="Words for the agent.")] = "",
) -> None:
    """Allow or deny a tool call that waits."""
    from rookery import policing

    _run(load_settings(), policing.answer_approval(approval_id, allow, note))


def audit(
    session_id: Annotated[str | None, typer.Argument(help="One session's only.")] = None,
    decision: Annotated[str | None, typer.Option(help="Only allow, ask or deny.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most decisions to show.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each decision.")] = False,
) -> None:
    """Show the latest decisions on agents' tool calls, with the rule and who decided."""
    from rookery import policing

    if decision not in (None, "allow", "ask", "deny"):
        _fail("--decision takes allow, ask or deny.")
    _run(load_settings(), policing.show_audit(session_id, decision, limit, as_json))


@policy_app.command("lint")
def policy_lint(
    names: Annotated[list[str] | None, typer.Argument(help="Policies; all of yours without.")] = None,
) -> None:
    """Find what is wrong or doubtful in policies; exit code 1 when one does not load."""
    from rookery import policing

    lines, broken = policing.lint_policies(load_settings(), names or [])
    typer.echo("\n".join(lines) or "There are no policies: set ROOKERY_POLICY_DIR.")
    raise typer.Exit(1 if broken else 0)


@policy_app.command("test")
def policy_test(name: str, table: Path) -> None:
    """Hold a policy against a YAML table of calls and what must become of them."""
    from policies import PolicyError
    from rookery import policing

    try:
        lines, failed = policing.check_table(_policy(load_settings(), name), table)
    except (PolicyError, OSError) as error:
        _fail(str(error), code=1)
    typer.echo("\n".join(lines))
    raise typer.Exit(1 if failed else 0)


@policy_app.command("explain")
def policy_explain(
    name: str,
    call: Annotated[str, typer.Argument(help='As in "Bash(git push)" or \'WebFetch({"url": "…"})\'.')],
    role: Annotated[str | None, typer.Option(help="In which role.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    every_rule: Annotated[bool, typer.Option("--all", help="Rules that did not match too.")] = False,
) -> None:
    """Say what a policy decides about a call, by which rule and why."""
    from rookery import policing

    try:
        typer.echo(policing.explain_call(_policy(load_settings(), name), call, role, as_json, every_rule))
    except ValueError as error:
        _fail(str(error))


@policy_app.command("simulate")
def policy_simulate(session_id: str, name: str) -> None:
    """Replay a session's tool calls under another policy: what would be newly denied, asked or allowed."""
    from rookery import policing

    settings = load_settings()
    _run(settings, policing.simulate(session_id, _policy(settings, name)))


@policy_app.command("diff")
def policy_diff(before: str, after: str) -> None:
    """Compare two policies by what they mean; exit code 1 when they differ."""
    from rookery import policing

    settings = load_settings()
    lines = policing.diff_policies(_policy(settings, before), _policy(settings, after))
    typer.echo("\n".join(lines) or "They mean the same.")
    raise typer.Exit(1 if lines else 0)


def _policy(settings: Settings, name: str) -> Policy:
    from rookery import policing
    from server.errors import RookeryError

    try:
        return policing.named(settings, name)
    except RookeryError as error:
        _fail(error.message, code=1)


def _run(settings: Settings, command: Command) -> None:
    from rookery import administration
    from server.telemetry import configure_logging

    configure_logging("error")
    raise typer.Exit(anyio.run(administration.run, settings, command))


def _fail(message: str, *, code: int = USAGE_ERROR) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
