"""The tool that says what agents cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydantic import Field

from server.models import Cost
from server.requests import CostRequest
from server.views import BudgetView, CostReport
from tools.definition import Call, ToolDefinition
from tools.rendering import money
from tools.sessions import SessionId


class CostArguments(CostRequest):
    session_id: SessionId | None = Field(default=None, description="one session; without it, all of yours")


async def get_costs(call: Call, arguments: CostArguments) -> CostReport:
    """Show what agents cost: of one session, of it with all that descends from it (`tree`), or of everything.

    The figures come from a ledger that meters every request, so they also hold retries, interrupted turns and
    requests of sessions that were deleted. `budgets` says what is spent, reserved and left of each cap.
    """
    request = CostRequest.model_validate(arguments.model_dump())
    return await call.registry.costs(call.principal, request)


def costs_text(report: CostReport) -> str:
    """The report for people: totals, caps, and a table of the groups."""
    scope = {"session": "This session", "tree": "This session and its descendants", "principal": "All sessions"}
    total = report.total
    failed = f", {total.failures} of them failed" if total.failures else ""
    cached = "" if report.cache_hit_rate is None else f" · {report.cache_hit_rate:.0%} of the input came from cache"
    lines = [
        f"{scope[report.scope]}: {money(total)}{failed}{cached}",
        f"Tokens: {total.input_tokens:,} input, {total.output_tokens:,} output, "
        f"{total.cache_read_tokens:,} cache read, {total.cache_write_tokens:,} cache write",
    ]
    if total.sandbox_seconds:
        lines.append(f"Sandbox: {total.sandbox_seconds:,.0f} s, ${total.sandbox_usd:.4f}")
    lines.extend(budget_text(budget) for budget in report.budgets)
    if report.groups:
        lines += ["", *_table(report)]
    if report.sdk_usd is not None:
        lines += ["", f"The SDK's own figure: ${report.sdk_usd:.4f}. {report.sdk_note}".rstrip()]
    if report.note:
        lines.append(report.note)
    return "\n".join(lines)


_BUDGETS: Final = {
    "session": "session",
    "tree": "tree",
    "principal": "account",
    "day": "day (UTC)",
    "token": "API token",
}


def budget_text(budget: BudgetView) -> str:
    """One cap in a line."""
    parts = []
    if budget.budget_usd is not None:
        held = f", ${budget.reserved_usd:.4f} reserved" if budget.reserved_usd else ""
        held += f", ${budget.allotted_usd:.4f} set aside for children" if budget.allotted_usd else ""
        parts.append(f"${budget.budget_usd:.2f}: ${budget.spent_usd:.4f} spent{held}, ${budget.remaining_usd:.4f} left")
    if budget.budget_tokens is not None:
        held = f", {budget.reserved_tokens:,} reserved" if budget.reserved_tokens else ""
        held += f", {budget.allotted_tokens:,} set aside for children" if budget.allotted_tokens else ""
        parts.append(
            f"{budget.budget_tokens:,} tokens: {budget.spent_tokens:,} used{held}, {budget.remaining_tokens:,} left"
        )
    name = _BUDGETS[budget.scope]
    return f"Budget of the {name}: {' · '.join(parts) or 'none'}"


def cost_cells(cost: Cost) -> tuple[str, ...]:
    """The figures of one row, as :data:`COLUMNS` names them."""
    unpriced = " + unknown" if cost.unpriced_requests else ""
    return (
        f"{cost.requests:,}",
        f"{cost.failures:,}",
        f"{cost.input_tokens:,}",
        f"{cost.output_tokens:,}",
        f"{cost.cache_read_tokens:,}",
        f"{cost.cache_write_tokens:,}",
        f"${cost.usd:.4f}{unpriced}",
    )


COLUMNS: Final = ("Requests", "Failed", "Input", "Output", "Cached", "To cache", "Cost")


def _table(report: CostReport) -> Iterable[str]:
    """The groups in columns, for clients that show text as it is."""
    rows = [
        ((report.group_by or "").capitalize(), *COLUMNS),
        *((" ".join(group.key.split())[:60], *cost_cells(group.cost)) for group in report.groups),
        ("Total", *cost_cells(report.total)),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        figures = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        yield "  ".join((row[0].ljust(widths[0]), *figures)).rstrip()


TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = (
    ToolDefinition(
        name="get_costs",
        title="Show costs",
        run=get_costs,
        arguments=CostArguments,
        answer=CostReport,
        render=costs_text,
        read_only=True,
    ),
)
