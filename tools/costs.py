"""The tool that says what agents cost."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from server.requests import CostRequest
from server.views import CostReport
from tools import rendering
from tools.definition import Call, ToolDefinition
from tools.sessions import SessionId


class CostArguments(CostRequest):
    session_id: SessionId | None = Field(default=None, description="one session; without it, all of yours")


async def get_costs(call: Call, arguments: CostArguments) -> CostReport:
    """Show what model requests cost: of one session, of it with all that descends from it (`tree`), or of everything.

    The figures come from a ledger that meters every request, so they also hold retries, interrupted turns and
    requests of sessions that were deleted.
    """
    request = CostRequest.model_validate(arguments.model_dump())
    return await call.registry.costs(call.principal, request)


TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = (
    ToolDefinition(
        name="get_costs",
        title="Show costs",
        run=get_costs,
        arguments=CostArguments,
        answer=CostReport,
        render=rendering.costs_text,
        read_only=True,
    ),
)
