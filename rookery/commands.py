"""The commands. Each imports what it needs when it runs, so that help and errors come at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, NoReturn

import anyio
import typer

from rookery import e2b_commands, policy_commands, token_commands
from rookery.configuration import USAGE_ERROR, load_settings, offering
from rookery.install.clients import Client, Reach

if TYPE_CHECKING:
    from rookery.administration import Command

app = typer.Typer(
    name="rookery",
    help="Sandboxed Claude agents as MCP tools.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
sessions_app = typer.Typer(no_args_is_help=True, help="Look at sessions, end them, delete old ones.")
app.add_typer(sessions_app, name="sessions")
daemon_app = typer.Typer(no_args_is_help=True, help="Look at the daemon that clients share, or end it.")
app.add_typer(daemon_app, name="daemon")
app.add_typer(token_commands.tokens_app, name="tokens")
app.add_typer(e2b_commands.e2b_app, name="e2b")
app.add_typer(policy_commands.approvals_app, name="approvals")
app.add_typer(policy_commands.policy_app, name="policy")
app.command()(policy_commands.audit)


@app.command()
def serve(
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|unix:PATH", help="Serve streamable HTTP on this address or Unix socket instead of stdio."
        ),
    ] = None,
    toolsets: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Which tools to offer, comma separated: all, simple, sessions, files, …"),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer only tools that change nothing.")] = False,
) -> None:
    """Serve MCP: on stdin and stdout for one client, or over HTTP for many."""
    settings = offering(load_settings(), toolsets, read_only=read_only)
    if http is None:
        from rookery.serving.stdio import run_stdio

        run_stdio(settings)
        return
    from rookery.serving.http import run_http
    from rookery.web.addresses import Address

    try:
        run_http(
            settings, Address.parse(http), announce=lambda url: typer.echo(f"Rookery serves MCP at {url}", err=True)
        )
    except ValueError as error:
        _fail(f"--http {http}: {error}")
    except OSError as error:
        _fail(f"Cannot listen on {http}: {error.strerror}. Choose another port.", code=1)


@app.command()
def connect(
    toolsets: Annotated[str | None, typer.Option(metavar="NAMES", help="Which tools to offer, as of `serve`.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer only tools that change nothing.")] = False,
) -> None:
    """Serve MCP on stdin and stdout by the daemon that all clients of this home share, starting it if need be."""
    from rookery.daemon.shim import run_connect

    if toolsets is not None:
        os.environ["ROOKERY_TOOLSETS"] = toolsets
    if read_only:
        os.environ["ROOKERY_READ_ONLY"] = "true"
    run_connect()


@daemon_app.command("run", hidden=True)
def daemon_run() -> None:
    """Be the daemon. `rookery connect` starts it."""
    from rookery.daemon.server import run_daemon

    run_daemon()


@daemon_app.command("status")
def daemon_status() -> None:
    """Show the daemon of this home, its clients and its agents."""
    from rookery.daemon.commands import status

    told = status(load_settings())
    if told is None:
        _fail("No daemon runs; `rookery connect` starts one.", code=1)
    typer.echo(told)


@daemon_app.command("stop")
def daemon_stop() -> None:
    """End the daemon of this home. Agents at work are interrupted and can be continued."""
    from rookery.daemon.commands import stop
    from server.errors import RookeryError

    try:
        ended = stop(load_settings())
    except RookeryError as error:
        _fail(str(error), code=1)
    typer.echo("The daemon has ended." if ended else "No daemon runs.")


@app.command()
def install(
    client: Annotated[Client, typer.Argument(help="The program to add Rookery to.")],
    project: Annotated[
        bool, typer.Option("--project", help="For whoever works in this directory, instead of for you everywhere.")
    ] = False,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable for the server; may be repeated.")
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Only print the entry and where it belongs.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace another entry of the same name.")] = False,
) -> None:
    """Add Rookery to a client's configuration, leaving all else in it as it is."""
    from rookery.install.command import install as add_to
    from rookery.install.document import RefusedError

    try:
        typer.echo(add_to(client, Reach.PROJECT if project else Reach.USER, env or [], show=show, replace=replace))
    except ValueError as error:
        _fail(str(error))
    except RefusedError as refusal:
        _fail(str(refusal), code=1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}", code=1)


@app.command()
def demo(
    scripted: Annotated[
        bool, typer.Option("--scripted", help="Play the scripted model even when a credential is set.")
    ] = False,
) -> None:
    """Watch an agent write a program, test it, and mend it in a second turn."""
    settings = load_settings()
    from rookery.demo import run_demo
    from server.telemetry import configure_logging

    configure_logging("error")
    raise typer.Exit(anyio.run(run_demo, settings, scripted))


@app.command()
def doctor(
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Check only what agents need to run; say only what is wrong.")
    ] = False,
) -> None:
    """Check what Rookery needs on this machine, with the remedy for each thing that is missing."""
    settings = load_settings()
    from rookery.doctor import run_doctor
    from server.telemetry import configure_logging

    configure_logging("error")
    raise typer.Exit(anyio.run(run_doctor, settings, sandbox))


@sessions_app.command("list")
def sessions_list(
    state: Annotated[str | None, typer.Option(help="Only sessions in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most sessions to show.")] = 50,
) -> None:
    """List sessions, newest first."""
    from rookery import administration

    _run(administration.list_sessions(state, limit))


@sessions_app.command("show")
def sessions_show(session_id: str) -> None:
    """Show one session with the outcome of its latest turn."""
    from rookery import administration

    _run(administration.show_session(session_id))


@sessions_app.command("end")
def sessions_end(
    session_id: str,
    delete: Annotated[bool, typer.Option("--delete", help="Also delete its files and transcript now.")] = False,
) -> None:
    """End a session for good."""
    from rookery import administration

    _run(administration.end_session(session_id, delete))


@sessions_app.command("prune")
def sessions_prune() -> None:
    """Delete ended sessions older than ROOKERY_RETENTION_DAYS."""
    from rookery import administration

    _run(administration.prune_sessions())


@app.command()
def costs(
    session_id: Annotated[str | None, typer.Argument(help="One session; all of them without.")] = None,
    by: Annotated[str | None, typer.Option(help="Sum by session, model, label or day.")] = None,
    tree: Annotated[bool, typer.Option("--tree", help="The session with all that descends from it.")] = False,
) -> None:
    """Show what agents cost, what is left of each cap, and a chart of the last days."""
    from rookery import cost_tables

    _run(cost_tables.show_costs(session_id, by, tree))


def _run(command: Command) -> None:
    """Run a command of :mod:`rookery.administration` with its exit code."""
    from rookery import administration
    from server.telemetry import configure_logging

    settings = load_settings()
    configure_logging("error")
    raise typer.Exit(anyio.run(administration.run, settings, command))


def _fail(message: str, *, code: int = USAGE_ERROR) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
