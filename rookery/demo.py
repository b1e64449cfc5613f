"""``rookery demo``: an agent in a real sandbox writes a program, tests it, and mends it in a second turn, live."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.spinner import Spinner
from rich.syntax import Syntax
from rich.table import Table

from rookery.administration import first_error
from rookery.application import open_registry
from rookery.cost_tables import costs_table
from rookery.doctor import credential_check, run_doctor
from server.callers import LOCAL_PRINCIPAL
from server.errors import RookeryError
from server.gateway.scripted import MEND_PROMPT, WRITE_PROMPT
from server.models import Event, EventKind, Outcome, StopReason
from server.requests import CostRequest, PromptRequest, SpawnRequest
from server.settings import UpstreamKind
from tools.backend import Registry

if TYPE_CHECKING:
    from server.settings import Settings

EXTEND_PROMPT: Final = (
    "Now add the other direction, from Roman numerals to numbers, with tests. Run all tests and show that they pass."
)
"""The second turn for a real model, which may well have left no bug to mend in the first."""

SHOWN_FILE: Final = "roman.py"

_RESULT_LINES: Final = 8
"""Last lines of a tool's result that are shown."""


async def run_demo(settings: Settings, scripted: bool, console: Console | None = None) -> int:
    """Run the demo; 0 when both turns ended well.

    Args:
        scripted: play the scripted model even when a credential is set.
    """
    console = console or Console()
    if await run_doctor(settings, sandbox_only=True, console=console):
        return 1
    if scripted or not credential_check(settings).ok:
        settings = settings.model_copy(update={"upstream": UpstreamKind.SCRIPTED, "scenario": None})
    played = settings.upstream is UpstreamKind.SCRIPTED
    console.print(Panel(_introduction(played), title="Rookery", border_style="cyan"))
    try:
        async with open_registry(settings.model_copy(update={"warm": 0})) as registry:
            return await _Demo(registry, console, played).run()
    except* RookeryError as errors:
        error = first_error(errors)
        console.print(f"[red]{error.code.value}[/]: {escape(error.message)}", highlight=False)
    return 1


def _introduction(scripted: bool) -> str:
    model = (
        "No credential is used: a [bold]scripted model[/] plays the agent's part. Everything else is real: the Claude "
        "Code CLI, the bubblewrap sandbox without any network, the model gateway, the store.\n"
        "With ANTHROPIC_API_KEY set, the same demo runs with Claude."
        if scripted
        else "Claude runs in a bubblewrap sandbox without any network; the model gateway alone holds your credential."
    )
    return f"An agent gets a task, works in a sandbox of its own, and is told to go on.\n{model}"


class _Demo:
    def __init__(self, registry: Registry, console: Console, scripted: bool) -> None:
        self._registry = registry
        self._console = console
        self._scripted = scripted
        self._cursor = 0

    async def run(self) -> int:
        registry, console = self._registry, self._console
        self._prompt(1, WRITE_PROMPT)
        session_id = await registry.spawn(
            LOCAL_PRINCIPAL, SpawnRequest(prompt=WRITE_PROMPT, title="Demo: Roman numerals", labels={"from": "demo"})
        )
        first = await self._follow(session_id)
        second_prompt = MEND_PROMPT if self._scripted else EXTEND_PROMPT
        self._prompt(2, second_prompt)
        await registry.prompt(LOCAL_PRINCIPAL, session_id, PromptRequest(prompt=second_prompt))
        second = await self._follow(session_id)
        await self._show_files(session_id)
        report = await registry.costs(LOCAL_PRINCIPAL, CostRequest(session_id=session_id, group_by="model"))
        table = costs_table(report)
        table.title = "Costs, as the ledger has them" + (" (scripted: nothing was paid)" if self._scripted else "")
        console.print(table)
        await registry.end(LOCAL_PRINCIPAL, session_id, delete=False)
        console.print(f"\nThe session can be looked at later: rookery sessions show {session_id}")
        console.print("To use Rookery from an MCP client, see README.md, or run: rookery install claude-code")
        return 0 if first.stop_reason is second.stop_reason is StopReason.END_TURN else 1

    def _prompt(self, turn: int, prompt: str) -> None:
        self._console.rule(f"[bold]Turn {turn}", align="left", style="cyan")
        self._console.print(f"[cyan]>[/] {escape(prompt)}", highlight=False)

    async def _follow(self, session_id: str) -> Outcome:
        """Show a turn's events as they come, with what the agent does now below them."""
        started = time.monotonic()
        with Live(Spinner("dots", "starting the sandbox"), console=self._console, transient=True) as live:
            while True:
                outcome = await self._registry.outcome(LOCAL_PRINCIPAL, session_id)
                progress = await self._registry.progress(LOCAL_PRINCIPAL, session_id)
                elapsed = time.monotonic() - started
                live.update(Spinner("dots", escape(f"{progress.text} · {elapsed:.0f} s · ${progress.usd:.4f}")))
                await self._show_new(session_id)
                if not outcome.state.is_busy:
                    break
                await self._registry.wait_for_change(LOCAL_PRINCIPAL, [session_id], {session_id: self._cursor}, 1.0)
        style = "green" if outcome.stop_reason is StopReason.END_TURN else "red"
        self._console.print(
            f"[{style}]{outcome.stop_reason}[/] after {time.monotonic() - started:.1f} s, "
            f"{outcome.cost.requests} model requests and ${outcome.cost.usd:.4f} so far\n",
            highlight=False,
        )
        if outcome.error is not None:
            self._console.print(f"[red]{outcome.error.code.value}[/]: {escape(outcome.error.message)}", highlight=False)
        return outcome

    async def _show_new(self, session_id: str) -> None:
        more = True
        while more:
            page = await self._registry.transcript(LOCAL_PRINCIPAL, session_id, after=self._cursor, limit=100)
            for event in page.events:
                if (line := _event_line(event)) is not None:
                    self._console.print(line, highlight=False)
            self._cursor, more = page.cursor, page.more

    async def _show_files(self, session_id: str) -> None:
        listing = await self._registry.list_files(LOCAL_PRINCIPAL, session_id)
        table = Table("File", "Size", title="The workspace")
        for entry in listing.entries:
            table.add_row(escape(entry.path), f"{entry.size:,}")
        self._console.print(table)
        if any(entry.path == SHOWN_FILE for entry in listing.entries):
            content = await self._registry.read_file(LOCAL_PRINCIPAL, session_id, SHOWN_FILE)
            self._console.print(Panel(Syntax(content.text or "", "python"), title=SHOWN_FILE, border_style="dim"))


def _event_line(event: Event) -> str | None:
    """One event for the screen; None for those that say nothing to a viewer."""
    data = event.data
    match event.kind:
        case EventKind.TEXT:
            return escape(str(data.get("text", "")).strip())
        case EventKind.TOOL_CALL:
            return f"[yellow]●[/] [bold]{escape(str(data.get('tool')))}[/] {escape(_gist(data.get('input')))}"
        case EventKind.TOOL_RESULT:
            lines = str(data.get("text", "")).strip().splitlines()
            shown = ["…", *lines[-_RESULT_LINES:]] if len(lines) > _RESULT_LINES else lines
            style = "red" if data.get("is_error") else "dim"
            return f"[{style}]" + escape("\n".join(f"  │ {line[:160]}" for line in shown)) + "[/]"
        case EventKind.DENIAL:
            return f"[red]✗ the policy denied {escape(str(data.get('tool')))}[/]"
        case EventKind.NOTICE:
            return f"[dim]{escape(str(data.get('text', '')))}[/]"
        case _:
            return None


def _gist(given: Any) -> str:
    """The part of a tool's input that tells most."""
    if not isinstance(given, dict):
        return ""
    for name in ("command", "file_path", "pattern", "path"):
        if isinstance(given.get(name), str):
            return str(given[name]).replace("\n", " ")[:160]
    return ""
