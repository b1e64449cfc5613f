"""Tasks that the conformance suite calls by name, as a source beside Rookery's own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from mcp.server.mcpserver import Context as ToolContext
from mcp.server.mcpserver import require_client_extension
from mcp_types import (
    INTERNAL_ERROR,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitResult,
    InputRequiredResult,
    TextContent,
)

from tests.conformance.protocol.fixtures import elicit
from tools.tasks import EXTENSION, Context, Task
from tools.tool_server import ToolServer

CONFIRM: Final = elicit("Really?", confirm={"type": "boolean"})
NAME: Final = elicit("What is your name?", name={"type": "string"})


@dataclass
class Job:
    """One call that goes on; what it is by now is told by the clock and the answers."""

    id: str
    begun: datetime
    lasts_s: float
    finish: Callable[[], CallToolResult | dict[str, Any]]
    questions: dict[str, ElicitRequest] = field(default_factory=dict)
    cancelled: bool = False

    def task(self) -> Task:
        now = datetime.now(UTC)
        if self.cancelled:
            return Task(self.id, "cancelled", self.begun, now)
        if self.questions:
            return Task(self.id, "input_required", self.begun, now, questions=dict(self.questions))
        if now < self.begun + timedelta(seconds=self.lasts_s):
            return Task(self.id, "working", self.begun, now, "working")
        ended = self.finish()
        if isinstance(ended, CallToolResult):
            return Task(self.id, "completed", self.begun, now, result=ended)
        return Task(self.id, "failed", self.begun, now, error=ended)


def said(text: str, *, is_error: bool = False) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=is_error)


class Jobs:
    """A :class:`~tools.tasks.TaskSource`."""

    tools = frozenset(
        {"slow_compute", "failing_job", "protocol_error_job", "confirm_delete", "multi_input", "test_tool_with_task"}
    )

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    async def start(self, params: CallToolRequestParams, context: Context) -> Task | None:
        given = params.arguments or {}
        lasts: float = 0.0
        questions: dict[str, ElicitRequest] = {}
        ends: CallToolResult | dict[str, Any]
        match params.name:
            case "slow_compute":
                lasts, ends = float(given.get("seconds", 0)), said("computed")
            case "failing_job":
                lasts, ends = 1.0, said("the job failed", is_error=True)
            case "protocol_error_job":
                ends = {"code": INTERNAL_ERROR, "message": "the job broke the protocol"}
            case "confirm_delete":
                questions, ends = {"confirm": CONFIRM}, said(f"deleted {given.get('filename')}")
            case "multi_input":
                questions, ends = {"first": NAME, "second": NAME}, said("both answered")
            case _:
                answer = (params.input_responses or {}).get("user_name")
                if not isinstance(answer, ElicitResult):
                    return None
                ends = said(f"Hello, {(answer.content or {}).get('name')}!")
        job = Job(secrets.token_hex(16), datetime.now(UTC), lasts, lambda: ends, questions)
        self._jobs[job.id] = job
        return job.task()

    async def get(self, task_id: str, context: Context) -> Task | None:
        job = self._jobs.get(task_id)
        return None if job is None else job.task()

    async def update(self, task: Task, responses: Mapping[str, Any], context: Context) -> None:
        for key in responses:
            self._jobs[task.id].questions.pop(key, None)

    async def cancel(self, task: Task, context: Context) -> None:
        if task.status in ("working", "input_required"):
            self._jobs[task.id].cancelled = True


def add_jobs(server: ToolServer) -> None:
    """Put the tools on a server, with the source that runs them for clients that declare tasks."""
    assert server.tasks is not None
    server.tasks.sources.insert(0, Jobs())

    @server.tool()
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    @server.tool()
    async def slow_compute(seconds: float = 0, label: str = "") -> str:
        return "computed"

    @server.tool()
    async def failing_job(ctx: ToolContext[Any, Any]) -> str:
        require_client_extension(ctx.request_context, EXTENSION)
        return "unreachable"

    @server.tool()
    async def protocol_error_job(ctx: ToolContext[Any, Any]) -> str:
        require_client_extension(ctx.request_context, EXTENSION)
        return "unreachable"

    @server.tool()
    async def confirm_delete(filename: str) -> str:
        return f"deleted {filename}"

    @server.tool()
    async def multi_input() -> str:
        return "both answered"

    @server.tool()
    async def test_tool_with_task(ctx: ToolContext[Any, Any]) -> str | InputRequiredResult:
        require_client_extension(ctx.request_context, EXTENSION)
        return InputRequiredResult(input_requests={"user_name": NAME})
