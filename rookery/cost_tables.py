"""``rookery costs``: what agents cost, as a table with what is left of each cap, and a small chart over time."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Final

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.callers import LOCAL_PRINCIPAL
from server.requests import CostRequest
from tools.arguments import parse_arguments
from tools.backend import Registry
from tools.costs import COLUMNS, budget_text, cost_cells

if TYPE_CHECKING:
    from rookery.administration import Command
    from server.views import CostReport

DAYS: Final = 14
"""Days in the chart, the last one the newest that cost something."""

BAR_WIDTH: Final = 40


def show_costs(session_id: str | None, by: str | None, tree: bool) -> Command:
    """The command: of one session, of its tree, or of everything."""

    async def command(registry: Registry, console: Console) -> None:
        asked = {"session_id": session_id, "group_by": by, "tree": tree}
        request = parse_arguments(CostRequest, asked, tool="rookery costs")
        report = await registry.costs(LOCAL_PRINCIPAL, request)
        console.print(costs_table(report))
        print_notes(report, console)
        by_day = report
        if by != "day":
            by_day = await registry.costs(LOCAL_PRINCIPAL, request.model_copy(update={"group_by": "day"}))
        chart = costs_chart(by_day)
        if chart is not None:
            console.print(chart)

    return command


def costs_table(report: CostReport) -> Table:
    """The report as a table, its sum as the last line."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column((report.group_by or "").capitalize(), overflow="fold")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for group in report.groups:
        table.add_row(escape(group.key), *cost_cells(group.cost))
    table.add_section()
    table.add_row("Total", *cost_cells(report.total), style="bold")
    return table


def print_notes(report: CostReport, console: Console) -> None:
    """What the table does not say: cache, sandboxes, caps, and the SDK's own figure."""
    lines = []
    if report.cache_hit_rate is not None:
        lines.append(f"{report.cache_hit_rate:.0%} of the input came from cache")
    if report.total.sandbox_seconds:
        lines.append(f"Sandboxes ran for {report.total.sandbox_seconds:,.0f} s: ${report.total.sandbox_usd:.4f}")
    lines.extend(budget_text(budget) for budget in report.budgets)
    if report.sdk_usd is not None:
        lines.append(f"The SDK's own figure: ${report.sdk_usd:.4f}. {report.sdk_note}".rstrip())
    if report.note:
        lines.append(report.note)
    for line in lines:
        console.print(line, markup=False, highlight=False)


def costs_chart(report: CostReport) -> Table | None:
    """One bar for each of the last days, in dollars; in tokens where nothing has a price. None without two days.

    Args:
        report: grouped by day.
    """
    days = {date.fromisoformat(group.key): group.cost for group in report.groups if _is_day(group.key)}
    if len(days) < 2:
        return None
    last = max(days)
    shown = [last - timedelta(days=back) for back in reversed(range(DAYS))]
    shown = [day for day in shown if day >= min(days)]
    in_dollars = any(cost.usd for cost in days.values())

    def size(day: date) -> float:
        cost = days.get(day)
        if cost is None:
            return 0.0
        tokens = cost.input_tokens + cost.output_tokens + cost.cache_read_tokens + cost.cache_write_tokens
        return cost.usd if in_dollars else float(tokens)

    highest = max(map(size, shown)) or 1.0
    chart = Table(show_header=False, box=None, padding=(0, 1))
    for day in shown:
        amount = f"${size(day):.4f}" if in_dollars else f"{size(day):,.0f} tokens"
        chart.add_row(f"[dim]{day:%m-%d}[/]", Bar(highest, 0, size(day), width=BAR_WIDTH, color="cyan"), amount)
    return chart


def _is_day(key: str) -> bool:
    try:
        date.fromisoformat(key)
    except ValueError:
        return False
    return True
