"""Tools that answer what a policy asks of people, and explain what a policy says."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from server.callers import Scope
from server.models import ApprovalRecord
from server.requests import IDENTIFIER, Request
from server.views import Approvals, ApprovalView, PolicyExplanation
from tools import rendering
from tools.definition import Call, ToolDefinition
from tools.next_steps import after_listing_approvals
from tools.sessions import SessionId


class ListApprovalsArguments(Request):
    session_id: SessionId | None = Field(default=None, description="only this session's; default: all of yours")


class AnswerArguments(Request):
    approval_id: SessionId = Field(
        description="which question: approval_id of an outcome's pending_approvals, or of list_approvals"
    )
    decision: Literal["allow", "deny"] = Field(description="whether the call may run")
    note: str = Field(default="", max_length=2_000, description="words for the agent")


class ExplainArguments(Request):
    session_id: SessionId | None = Field(default=None, description="the session whose policy is asked")
    policy: str | None = Field(
        default=None,
        pattern=f"^{IDENTIFIER.pattern}$",
        description="a policy by name (preset, or file in ROOKERY_POLICY_DIR) instead of a session's",
    )
    tool: str = Field(min_length=1, max_length=200, description="name of the agent's tool, as Bash or Write")
    input: dict[str, Any] = Field(default_factory=dict, description="the call's input, as the agent would send it")


async def list_approvals(call: Call, arguments: ListApprovalsArguments) -> Approvals:
    """List the tool calls that wait for a person's or your decision, oldest first."""
    records = await call.registry.list_approvals(call.principal, arguments.session_id)
    approvals = tuple(_view(record) for record in records)
    return Approvals(approvals=approvals, next=after_listing_approvals(len(approvals), call.offer))


async def answer_approval(call: Call, arguments: AnswerArguments) -> ApprovalView:
    """Allow or deny a tool call that waits for a decision. A question is answered once and expires to a denial.

    The agent goes on by itself, also when it has been put to sleep meanwhile: wait_for_sessions picks it up.
    """
    record = await call.registry.answer_approval(
        call.principal, arguments.approval_id, allow=arguments.decision == "allow", note=arguments.note
    )
    return _view(record)


async def explain_policy(call: Call, arguments: ExplainArguments) -> PolicyExplanation:
    """Say what a policy decides about a tool call, by which rule and why. Nothing is run.

    Name a session, or a policy; with neither, the default policy is asked.
    """
    return await call.registry.explain_policy(
        call.principal,
        session_id=arguments.session_id,
        policy=arguments.policy,
        tool=arguments.tool,
        tool_input=arguments.input,
    )


def _view(record: ApprovalRecord) -> ApprovalView:
    return ApprovalView(
        approval_id=record.id,
        session_id=record.session_id,
        turn=record.turn,
        tool=record.tool,
        summary=record.summary,
        input=record.input,
        rule=record.rule,
        status=record.status.value,
        note=record.note,
        decided_by=record.decided_by,
        created_at=record.created_at,
        expires_at=record.expires_at,
        decided_at=record.decided_at,
    )


TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = (
    ToolDefinition(
        name="list_approvals",
        title="List approvals",
        run=list_approvals,
        arguments=ListApprovalsArguments,
        answer=Approvals,
        render=rendering.approvals_text,
        read_only=True,
    ),
    ToolDefinition(
        name="answer_approval",
        title="Answer an approval",
        run=answer_approval,
        arguments=AnswerArguments,
        answer=ApprovalView,
        render=rendering.approval_text,
        open_world=True,
        scope=Scope.APPROVE,
    ),
    ToolDefinition(
        name="explain_policy",
        title="Explain a policy",
        run=explain_policy,
        arguments=ExplainArguments,
        answer=PolicyExplanation,
        render=rendering.explanation_text,
        read_only=True,
    ),
)
