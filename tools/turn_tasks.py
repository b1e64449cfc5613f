"""Turns of sessions as tasks. The first turn's task has the session's own id, a later one's ``<session id>:<turn>``.

Nothing is kept for a task: it is read off the turn, so that it outlives processes, shows the same through every
server of the home, and is found by its principal alone. Either door works: what a task began can be waited for with
wait_for_sessions, and interrupted, read and continued as any session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mcp.server.mcpserver import Context as ToolContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitResult,
    TextContent,
)
from pydantic import ValidationError

from server.callers import Scope
from server.errors import ErrorCode, RookeryError
from server.models import Outcome, StopReason
from server.views import TurnStatus
from tools.elicitation import Attached, Elicitation, question_form
from tools.next_steps import guided
from tools.offer import Offer
from tools.rendering import outcome_text
from tools.tasks import Context, Task, TaskStatus
from tools.tool_server import ToolServer

STARTERS: Final = frozenset({"spawn_agent", "continue_session", "run_agent", "reply"})
"""Tools that begin one turn of one session."""


class TurnTasks:
    """A :class:`~tools.tasks.TaskSource` over the sessions of a server's principals."""

    def __init__(self, server: ToolServer) -> None:
        self._server = server
        self.tools = STARTERS & server.tool_names

    async def start(self, params: CallToolRequestParams, context: Context) -> Task | CallToolResult | None:
        """Begin the turn. A caller that asks for ``wait_s=0`` wants the outcome at once, and gets it as everyone."""
        arguments = params.arguments or {}
        if arguments.get("wait_s") == 0 or not _is_plain_wait(arguments.get("wait_s")):
            return None
        request = ToolContext(request_context=context, mcp_server=self._server, input_params=params)
        answer = await self._server.call_tool(params.name, {**arguments, "wait_s": 0}, request)
        # A call that does not wait asks nobody, so this is an answer and never a question.
        assert isinstance(answer, CallToolResult)
        if answer.is_error:
            return answer
        outcome = Outcome.model_validate(answer.structured_content)
        return await self.get(task_id_of(outcome.session_id, outcome.turn), context)

    async def get(self, task_id: str, context: Context) -> Task | None:
        place = _place(task_id)
        if place is None:
            return None
        try:
            caller = self._server.allowed(context, Scope.READ)
            status = await (await self._server.backend.registry()).turn_status(caller.principal, *place)
        except RookeryError as error:
            if error.code is ErrorCode.SESSION_NOT_FOUND:
                return None
            raise self._refusal(context, error) from error
        return _task(task_id, status, self._server.offer(caller), asks=_can_ask(context))

    async def update(self, task: Task, responses: Mapping[str, Any], context: Context) -> None:
        answers: dict[str, ElicitResult] = {}
        for approval_id in task.questions.keys() & responses.keys():
            try:
                answers[approval_id] = ElicitResult.model_validate(responses[approval_id])
            except ValidationError:
                continue  # no answer to the question: it stays open
        try:
            principal = self._server.allowed(context, Scope.APPROVE).principal
            registry = await self._server.backend.registry()
            await Elicitation(registry, principal, Attached({}), None).take(answers)
        except RookeryError as error:
            raise self._refusal(context, error) from error

    async def cancel(self, task: Task, context: Context) -> None:
        place = _place(task.id)
        if place is None or task.status not in ("working", "input_required"):
            return
        try:
            principal = self._server.allowed(context, Scope.RUN).principal
            await (await self._server.backend.registry()).interrupt(principal, place[0])
        except RookeryError as error:
            # Past its time it is under way: the task shows when it has stopped.
            if error.code is not ErrorCode.TIMEOUT:
                raise self._refusal(context, error) from error

    def _refusal(self, context: Context, error: RookeryError) -> MCPError:
        code = INVALID_REQUEST if error.code is ErrorCode.POLICY_DENIED else INTERNAL_ERROR
        return MCPError(code=code, message=str(self._server.told(context, error)))


def task_id_of(session_id: str, turn: int) -> str:
    """The id of a turn's task."""
    return session_id if turn == 1 else f"{session_id}:{turn}"


def _place(task_id: str) -> tuple[str, int] | None:
    """Session and turn of a task; None for what is no id of a task."""
    session_id, separator, number = task_id.partition(":")
    if not separator:
        return session_id, 1
    if not (number.isascii() and number.isdecimal() and 1 < int(number[:9]) < 10**8) or str(int(number)) != number:
        return None
    return session_id, int(number)


def _is_plain_wait(value: Any) -> bool:
    """Whether ``wait_s`` is absent or a number; anything else is refused by the tool itself."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 0)


def _can_ask(context: Context) -> bool:
    declared = context.session.client_capabilities
    return declared is not None and declared.elicitation is not None


def _task(task_id: str, status: TurnStatus, offer: Offer, *, asks: bool) -> Task:
    outcome = guided(status.outcome, offer)
    message = f"{status.activity} · ${outcome.cost.usd:.4f}"
    if status.over and outcome.stop_reason is StopReason.INTERRUPTED:
        message = offer.worded("The turn was interrupted; continue_session goes on from here.")
        return Task(task_id, "cancelled", status.started_at, status.updated_at, message)
    if status.over:
        return Task(task_id, "completed", status.started_at, status.updated_at, result=_result(outcome))
    questions: dict[str, ElicitRequest] = {}
    if outcome.pending_approvals and asks:
        questions = {approval.approval_id: question_form(approval) for approval in outcome.pending_approvals}
    elif outcome.pending_approvals:
        message = f"{len(outcome.pending_approvals)} question(s) wait. {outcome.next}"
    kind: TaskStatus = "input_required" if questions else "working"
    return Task(task_id, kind, status.started_at, status.updated_at, message, questions=questions)


def _result(outcome: Outcome) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(type="text", text=outcome_text(outcome))],
        structured_content=outcome.model_dump(mode="json"),
    )
