"""The client's half of the tasks extension, for tests: it polls a task to its end and answers its questions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
from mcp import Client
from mcp.client import ClientExtension, ClientSession
from mcp.client.extension import ClaimContext, ResultClaim
from mcp_types import CallToolResult, Request, RequestParams, Result
from pydantic import ConfigDict, Field

from tools.tasks import EXTENSION

Answerer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class CreatedTask(Result):
    """What a call answers that goes on as a task."""

    result_type: Literal["task"] = Field(alias="resultType")
    task_id: str = Field(alias="taskId")
    status: str


class _Answer(Result):
    model_config = ConfigDict(extra="allow")


class _Params(RequestParams):
    model_config = ConfigDict(extra="allow")


class _TaskRequest(Request[_Params, str]):
    # The transport names the task in a header of its own, as the extension wants it.
    name_param = "taskId"


class TasksClient(ClientExtension):
    """Declares the extension; ``answer`` is asked each question that a task has."""

    identifier = EXTENSION

    def __init__(self, answer: Answerer | None = None) -> None:
        self._answer = answer

    def claims(self) -> list[ResultClaim[CreatedTask]]:
        return [ResultClaim(result_type="task", model=CreatedTask, resolve=self._resolve)]

    async def _resolve(self, created: CreatedTask, context: ClaimContext) -> CallToolResult:
        while True:
            task = await ask(context.session, "get", created.task_id)
            if questions := task.get("inputRequests"):
                assert self._answer is not None
                answers = {key: await self._answer(question) for key, question in questions.items()}
                await ask(context.session, "update", created.task_id, inputResponses=answers)
            elif task["status"] == "completed":
                return CallToolResult.model_validate(task["result"])
            else:
                assert task["status"] in ("working", "input_required"), task
                await anyio.sleep(0.1)


async def ask(session: ClientSession, what: str, task_id: str, **more: Any) -> dict[str, Any]:
    """``tasks/get``, ``tasks/update`` or ``tasks/cancel``, as it is on the wire."""
    params = _Params.model_validate({"taskId": task_id, **more})
    answer = await session.send_request(_TaskRequest(method=f"tasks/{what}", params=params), _Answer)
    return answer.model_dump(by_alias=True, mode="json")


async def begin(client: Client, tool: str, arguments: dict[str, Any]) -> CreatedTask:
    """A call that must go on as a task."""
    created = await client.session.call_tool(tool, arguments, allow_claimed=True)
    assert isinstance(created, CreatedTask), created
    return created


async def until(client: Client, task_id: str, *statuses: str) -> dict[str, Any]:
    """The task once it has one of these statuses."""
    with anyio.fail_after(60):
        while (task := await ask(client.session, "get", task_id))["status"] not in statuses:
            await anyio.sleep(0.05)
    return task
