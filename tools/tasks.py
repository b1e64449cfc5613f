"""Tool calls that go on as tasks: the extension ``io.modelcontextprotocol/tasks`` of protocol 2026-07-28 (SEP-2663).

A client that declares the extension gets a task for a call that works long, polls it, and may put it aside and come
back, also from another process. What a task is, its *source* says; this module is the protocol's side alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, Protocol

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    RequestParams,
)
from pydantic import Field

EXTENSION: Final = "io.modelcontextprotocol/tasks"

REVISIONS: Final = frozenset({"2026-07-28"})
"""Protocol revisions whose wire can carry a task."""

POLL_MS: Final = 1_000
"""How often a client should ask."""

TaskStatus = Literal["working", "input_required", "completed", "failed", "cancelled"]

Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True)
class Task:
    """A task as it stands.

    Args:
        id: unguessable; means something to its principal only.
        message: what it does now, for people.
        result: of a completed one: what the call answers. A tool that failed has completed too.
        error: of a failed one: the JSON-RPC error.
        questions: of one that needs its client: what to ask, by key.
    """

    id: str
    status: TaskStatus
    created_at: datetime
    updated_at: datetime
    message: str = ""
    result: CallToolResult | None = None
    error: Mapping[str, Any] | None = None
    questions: Mapping[str, ElicitRequest] = field(default_factory=dict)

    def created(self) -> dict[str, Any]:
        """As the answer to the call that began it."""
        return {"resultType": "task", **self._common()}

    def shown(self) -> dict[str, Any]:
        """As the answer to ``tasks/get``."""
        wire: dict[str, Any] = {"resultType": "complete", **self._common()}
        if self.result is not None:
            wire["result"] = self.result.model_dump(by_alias=True, mode="json", exclude_none=True)
        if self.error is not None:
            wire["error"] = dict(self.error)
        if self.questions:
            wire["inputRequests"] = {
                key: question.model_dump(by_alias=True, mode="json", exclude_none=True)
                for key, question in self.questions.items()
            }
        return wire

    def _common(self) -> dict[str, Any]:
        wire: dict[str, Any] = {
            "taskId": self.id,
            "status": self.status,
            "createdAt": _timestamp(self.created_at),
            "lastUpdatedAt": _timestamp(self.updated_at),
            # A session is kept till its retention is over, which is counted from an end that nobody knows yet.
            "ttlMs": None,
            "pollIntervalMs": POLL_MS,
        }
        if self.message:
            wire["statusMessage"] = self.message
        return wire


class TaskSource(Protocol):
    """Where tasks come from."""

    @property
    def tools(self) -> Collection[str]:
        """Names of the tools whose calls it takes over for clients that declare the extension."""
        ...

    async def start(self, params: CallToolRequestParams, context: Context) -> Task | CallToolResult | None:
        """Begin a call as a task, once it is durable; or answer it at once; or None: let it run as for everyone."""
        ...

    async def get(self, task_id: str, context: Context) -> Task | None:
        """The task; None when it is missing or somebody else's."""
        ...

    async def update(self, task: Task, responses: Mapping[str, Any], context: Context) -> None:
        """Take the client's answers to the task's questions; unknown keys are let be."""
        ...

    async def cancel(self, task: Task, context: Context) -> None:
        """Have the task stop; nothing for one that is over."""
        ...


class TaskParams(RequestParams):
    task_id: str = Field(alias="taskId", max_length=300)


class TaskUpdateParams(TaskParams):
    input_responses: dict[str, Any] = Field(default_factory=dict, alias="inputResponses")


class TasksExtension(Extension):
    """The methods ``tasks/get``, ``tasks/update`` and ``tasks/cancel``, over any number of sources."""

    identifier = EXTENSION

    def __init__(self) -> None:
        self.sources: list[TaskSource] = []

    def methods(self) -> list[MethodBinding]:
        return [
            MethodBinding("tasks/get", TaskParams, self._get, REVISIONS),
            MethodBinding("tasks/update", TaskUpdateParams, self._update, REVISIONS),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, REVISIONS),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        if declares_tasks(ctx):
            for source in self.sources:
                if params.name in source.tools:
                    begun = await source.start(params, ctx)
                    if begun is not None:
                        return begun.created() if isinstance(begun, Task) else begun
        return await call_next(ctx)

    async def _get(self, ctx: Context, params: TaskParams) -> HandlerResult:
        _, task = await self._find(ctx, params)
        return task.shown()

    async def _update(self, ctx: Context, params: TaskUpdateParams) -> HandlerResult:
        source, task = await self._find(ctx, params)
        await source.update(task, params.input_responses, ctx)
        return {"resultType": "complete"}

    async def _cancel(self, ctx: Context, params: TaskParams) -> HandlerResult:
        source, task = await self._find(ctx, params)
        await source.cancel(task, ctx)
        return {"resultType": "complete"}

    async def _find(self, ctx: Context, params: TaskParams) -> tuple[TaskSource, Task]:
        """The task that a request names.

        Raises:
            MCPError: the client did not declare the extension; a routing header names another task; there is none.
        """
        require_client_extension(ctx, EXTENSION)
        named = getattr(ctx.request, "headers", {}).get("mcp-name")
        if named not in (None, params.task_id):
            raise MCPError(code=HEADER_MISMATCH, message="The header Mcp-Name names another task than the request.")
        for source in self.sources:
            task = await source.get(params.task_id, ctx)
            if task is not None:
                return source, task
        raise MCPError(code=INVALID_PARAMS, message="There is no such task.")


def declares_tasks(context: Context) -> bool:
    """Whether a request's client can take a task for an answer."""
    capabilities = context.session.client_capabilities
    declared = (capabilities.extensions if capabilities else None) or {}
    return context.protocol_version in REVISIONS and EXTENSION in declared


def _timestamp(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
