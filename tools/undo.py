"""Tools that go back: checkpoints, rewinding, forking."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field, field_validator

from server.requests import checked_identifier, checked_prompt
from server.views import CheckpointSummary, ForkReport, RewindReport
from tools import rendering
from tools.definition import Call, ToolDefinition
from tools.next_steps import after_forking, after_rewinding, guided
from tools.sessions import SessionArguments, SessionId
from tools.waiting import DEFAULT_WAIT_S, WaitSeconds, wait_until_settled

MAX_FORKS: Final = 16
"""Most forks made by one call."""

CheckpointId = SessionId
"""The same form; the description is each field's own."""


class CheckpointArguments(SessionArguments):
    label: str = Field(default="", max_length=200, description="words to find it again by")


class RewindArguments(SessionArguments):
    checkpoint_id: CheckpointId = Field(description="where to go back to: an outcome's checkpoint_id, or get_session's")
    dry_run: bool = Field(default=False, description="only tell what would change")
    conversation: bool = Field(default=False, description="take the conversation back too, not only the files")


class ForkArguments(SessionArguments):
    prompt: str | None = Field(default=None, description="first prompt of each fork; without it they wait for one")
    checkpoint_id: CheckpointId | None = Field(
        default=None, description="where the forks begin; default: now, or the start of the turn that runs"
    )
    count: int = Field(default=1, ge=1, le=MAX_FORKS, description="how many forks")
    request_id: str | None = Field(
        default=None, max_length=200, description="key of your own: a repeated call answers with the first forks"
    )
    wait_s: WaitSeconds = DEFAULT_WAIT_S

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str | None) -> str | None:
        return None if value is None else checked_prompt(value)

    @field_validator("request_id")
    @classmethod
    def _identifier(cls, value: str | None) -> str | None:
        return checked_identifier(value)


async def create_checkpoint(call: Call, arguments: CheckpointArguments) -> CheckpointSummary:
    """Remember an idle session's files and conversation as they are now, to rewind to or fork from later.

    One is taken by itself at the start and the end of every turn.
    """
    record = await call.registry.create_checkpoint(call.principal, arguments.session_id, arguments.label)
    return CheckpointSummary(
        checkpoint_id=record.id,
        turn=record.turn,
        kind=record.kind.value,
        label=record.label,
        files=record.files,
        created_at=record.created_at,
    )


async def rewind_files(call: Call, arguments: RewindArguments) -> RewindReport:
    """Take a session's whole workspace back to a checkpoint: also what Bash made, ignored files, modes, deletions.

    Look first with dry_run=true. The present is checkpointed before anything changes: rewind to undo_checkpoint_id
    to undo. With conversation=true the agent also forgets what came after; else it is told that files went back.
    """
    report = await call.registry.rewind(
        call.principal,
        arguments.session_id,
        arguments.checkpoint_id,
        dry_run=arguments.dry_run,
        conversation=arguments.conversation,
    )
    return report.model_copy(update={"next": after_rewinding(report, call.offer)})


async def fork_session(call: Call, arguments: ForkArguments) -> ForkReport:
    """Start new sessions from a session's checkpoint, each with a copy of its files and its conversation.

    The original is not touched and goes on as it was. Works on running and ended sessions too. With a prompt the
    forks begin to work at once, side by side.
    """
    ids = call.attached or await call.registry.fork(
        call.principal,
        arguments.session_id,
        prompt=arguments.prompt,
        checkpoint_id=arguments.checkpoint_id,
        count=arguments.count,
        request_id=arguments.request_id,
    )
    turn = 0 if arguments.prompt is None else 1
    waited = await wait_until_settled(call, dict.fromkeys(ids, turn), wait_s=arguments.wait_s)
    return ForkReport(
        session_id=arguments.session_id,
        checkpoint_id=arguments.checkpoint_id,
        forks=tuple(guided(outcome, call.offer) for outcome in waited.outcomes),
        next=after_forking(waited.working, call.offer),
    )


TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = (
    ToolDefinition(
        name="fork_session",
        title="Fork a session",
        run=fork_session,
        arguments=ForkArguments,
        answer=ForkReport,
        render=rendering.fork_text,
        open_world=True,
    ),
    ToolDefinition(
        name="rewind_files",
        title="Rewind files",
        run=rewind_files,
        arguments=RewindArguments,
        answer=RewindReport,
        render=rendering.rewind_text,
        destructive=True,
        idempotent=True,
    ),
    ToolDefinition(
        name="create_checkpoint",
        title="Create a checkpoint",
        run=create_checkpoint,
        arguments=CheckpointArguments,
        answer=CheckpointSummary,
        render=rendering.checkpoint_text,
    ),
)
