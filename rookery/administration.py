"""The commands that look at sessions and costs, or tidy up, beside any server that runs on the same home."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rookery.application import open_registry
from server.callers import LOCAL_PRINCIPAL
from server.errors import ErrorCode, RookeryError
from server.models import Outcome, SessionState
from server.requests import ListRequest
from server.views import SessionPage, SessionView
from tools.backend import Registry

if TYPE_CHECKING:
    from server.settings import Settings

Command = Callable[[Registry, Console], Awaitable[None]]

ID_WIDTH: Final = 36
"""Characters of a session id."""

STATE_STYLES: Final = {
    SessionState.STARTING: "cyan",
    SessionState.RUNNING: "cyan",
    SessionState.AWAITING_APPROVAL: "yellow",
    SessionState.IDLE: "green",
    SessionState.ENDED: "dim",
    SessionState.FAILED: "red",
}


async def run(settings: Settings, command: Command) -> int:
    """Run a command over the home's registry; the exit code. A typed error becomes one line on stderr."""
    code = 0
    try:
        async with open_registry(settings, visiting=True) as registry:
            await command(registry, Console())
    except* RookeryError as errors:
        error = first_error(errors)
        Console(stderr=True).print(f"[red]{error.code.value}[/]: {escape(error.message)}", highlight=False)
        code = 1
    return code


def list_sessions(state: str | None, limit: int) -> Command:
    async def command(registry: Registry, console: Console) -> None:
        if state is not None and state not in list(SessionState):
            known = ", ".join(SessionState)
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"There is no such state; the states are {known}.")
        page = await registry.list(LOCAL_PRINCIPAL, ListRequest(state=state, limit=limit))
        console.print(sessions_table(page) if page.sessions else "No sessions.")

    return command


def show_session(session_id: str) -> Command:
    async def command(registry: Registry, console: Console) -> None:
        _show(await registry.get(LOCAL_PRINCIPAL, session_id), console)

    return command


def end_session(session_id: str, delete: bool) -> Command:
    async def command(registry: Registry, console: Console) -> None:
        deletion = await registry.end(LOCAL_PRINCIPAL, session_id, delete=delete)
        console.print(f"Session {deletion.session_id} {'was deleted' if deletion.deleted else 'has ended'}.")

    return command


def prune_sessions() -> Command:
    async def command(registry: Registry, console: Console) -> None:
        console.print(f"{await registry.prune()} session(s) deleted.")

    return command


def sessions_table(page: SessionPage) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for name in ("Session", "State", "Turn", "Cost"):
        # A session id is shown whole, for people copy it.
        table.add_column(name, no_wrap=True, min_width=ID_WIDTH if name == "Session" else None)
    table.add_column("Title")
    for one in page.sessions:
        style = STATE_STYLES[one.state]
        table.add_row(one.session_id, f"[{style}]{one.state}[/]", str(one.turn), f"${one.usd:.4f}", escape(one.title))
    return table


def _show(view: SessionView, console: Console) -> None:
    table = Table(show_header=False, box=None)
    for name, value in (
        ("Session", view.session_id),
        ("Title", escape(view.title)),
        ("State", _state(view.outcome)),
        ("Model", escape(view.model or "default")),
        ("Policy", view.policy),
        ("Sandbox", view.sandbox),
        ("Created", f"{view.created_at:%Y-%m-%d %H:%M} UTC"),
        ("Changed", f"{view.updated_at:%Y-%m-%d %H:%M} UTC"),
        ("Cost", f"${view.outcome.cost.usd:.4f} of ${view.budget_usd:.2f}" if view.budget_usd else ""),
        ("Activity", escape(view.activity)),
    ):
        table.add_row(f"[dim]{name}[/]", value)
    console.print(table)
    if view.outcome.error is not None:
        console.print(f"[red]{view.outcome.error.code.value}[/]: {escape(view.outcome.error.message)}", highlight=False)
    if view.outcome.text:
        console.print()
        console.print(view.outcome.text, markup=False, highlight=False)


def _state(outcome: Outcome) -> str:
    stopped = f" ({outcome.stop_reason})" if outcome.stop_reason else ""
    return f"[{STATE_STYLES[outcome.state]}]{outcome.state}[/], turn {outcome.turn}{stopped}"


def first_error(errors: BaseExceptionGroup[RookeryError]) -> RookeryError:
    """The first error of a group, however deeply task groups have wrapped it."""
    for member in errors.exceptions:
        return member if isinstance(member, RookeryError) else first_error(member)
    raise AssertionError("an exception group is never empty")
