"""The toolset ``simple``: two tools for clients that want an agent and nothing else."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from server.callers import Scope
from server.errors import ErrorCode, RookeryError
from server.models import Outcome
from server.requests import PromptRequest, Request, SpawnRequest, WorkspaceSource, checked_identifier, checked_prompt
from tools import rendering
from tools.definition import Call, ToolDefinition
from tools.next_steps import guided
from tools.sessions import SessionId
from tools.waiting import DEFAULT_WAIT_S, WaitSeconds, wait_until_settled


class RunArguments(Request):
    prompt: str = Field(description="the task, with all that the agent must know; it sees nothing of the caller")
    workspace: WorkspaceSource | None = Field(default=None, description="what the workspace holds at the start")
    request_id: str | None = Field(
        default=None, max_length=200, description="key of your own: a repeated call answers with the first agent"
    )
    wait_s: WaitSeconds = DEFAULT_WAIT_S

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str) -> str:
        return checked_prompt(value)

    @field_validator("request_id")
    @classmethod
    def _identifier(cls, value: str | None) -> str | None:
        return checked_identifier(value)


class ReplyArguments(Request):
    session_id: SessionId
    prompt: str | None = Field(default=None, description="what to tell the agent next; without it: wait on")
    decision: Literal["allow", "deny"] | None = Field(
        default=None, description="the answer to the tool calls that the agent asks permission for"
    )
    wait_s: WaitSeconds = DEFAULT_WAIT_S

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str | None) -> str | None:
        return None if value is None else checked_prompt(value)

    @model_validator(mode="after")
    def _one_of_them(self) -> ReplyArguments:
        if self.prompt is not None and self.decision is not None:
            raise ValueError("takes prompt or decision, not both: decide first, and go on when the agent has stopped")
        return self


async def run_agent(call: Call, arguments: RunArguments) -> Outcome:
    """Give a task to a new Claude agent in a sandbox of its own and get its answer.

    The agent has a file system, a shell and no network but what its policy names. When it needs longer than wait_s,
    the answer has state "running": call reply with its session_id, again and again, to wait on.
    """
    request = SpawnRequest(prompt=arguments.prompt, workspace=arguments.workspace, request_id=arguments.request_id)
    turns = call.attached or {await call.registry.spawn(call.principal, request, token_id=call.caller.token_id): 1}
    return await _outcome(call, turns, arguments.wait_s)


async def reply(call: Call, arguments: ReplyArguments) -> Outcome:
    """Go on with an agent: tell it what to do next, or wait on, or decide what it asks permission for.

    It keeps its conversation and its files. With neither prompt nor decision the call waits for an agent that works.
    """
    session_id = arguments.session_id
    turns = call.attached
    if turns is None and arguments.prompt is not None:
        request = PromptRequest(prompt=arguments.prompt)
        turns = {session_id: await call.registry.prompt(call.principal, session_id, request)}
    elif turns is None and arguments.decision is not None:
        await _decide(call, session_id, allow=arguments.decision == "allow")
    return await _outcome(call, turns or {session_id: 0}, arguments.wait_s)


async def _decide(call: Call, session_id: str, *, allow: bool) -> None:
    call.caller.require(Scope.APPROVE)
    pending = await call.registry.list_approvals(call.principal, session_id)
    if not pending:
        raise RookeryError(ErrorCode.APPROVAL_NOT_FOUND, "The agent asks for nothing now: call reply without decision.")
    for approval in pending:
        await call.registry.answer_approval(call.principal, approval.id, allow=allow)


async def _outcome(call: Call, turns: Any, wait_s: float) -> Outcome:
    waited = await wait_until_settled(call, turns, wait_s=wait_s)
    (outcome,) = waited.outcomes
    # Who came in by these two is led on by them, whatever else is offered.
    return guided(outcome, call.offer.among("run_agent", "reply"))


TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = (
    ToolDefinition(
        name="run_agent",
        title="Run an agent",
        run=run_agent,
        arguments=RunArguments,
        answer=Outcome,
        render=rendering.outcome_text,
        open_world=True,
    ),
    ToolDefinition(
        name="reply",
        title="Reply to an agent",
        run=reply,
        arguments=ReplyArguments,
        answer=Outcome,
        render=rendering.outcome_text,
        destructive=True,
        open_world=True,
    ),
)
