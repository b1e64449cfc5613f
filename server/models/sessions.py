"""A session, where it stands, and the only moves that it can make."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from pydantic import Field

from server.models.base import Record

NOT_COPIED: Final = "not_copied"
"""Key beside the source of a session's workspace: a :class:`NotCopied`."""


class SessionState(StrEnum):
    """Where a session stands (DESIGN section 2)."""

    STARTING = "starting"
    RUNNING = "running"
    AWAITING_APPROVAL = "awaiting_approval"
    IDLE = "idle"
    ENDED = "ended"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Ended and failed sessions never move again; an idle one waits for its next prompt."""
        return self in (SessionState.ENDED, SessionState.FAILED)

    @property
    def is_busy(self) -> bool:
        """A turn is under way, so a second prompt is refused."""
        return self in (SessionState.STARTING, SessionState.RUNNING, SessionState.AWAITING_APPROVAL)


TRANSITIONS: Final[Mapping[SessionState, frozenset[SessionState]]] = {
    SessionState.STARTING: frozenset(
        {SessionState.RUNNING, SessionState.IDLE, SessionState.ENDED, SessionState.FAILED}
    ),
    SessionState.RUNNING: frozenset(
        {SessionState.IDLE, SessionState.AWAITING_APPROVAL, SessionState.ENDED, SessionState.FAILED}
    ),
    SessionState.AWAITING_APPROVAL: frozenset(
        {SessionState.RUNNING, SessionState.IDLE, SessionState.ENDED, SessionState.FAILED}
    ),
    SessionState.IDLE: frozenset({SessionState.RUNNING, SessionState.ENDED, SessionState.FAILED}),
    SessionState.ENDED: frozenset(),
    SessionState.FAILED: frozenset({SessionState.ENDED}),
}
"""The only moves a session can make. ``starting → idle`` is a start that was interrupted or failed in a way that a
later prompt can mend; ``failed → ended`` is a person tidying up."""


class NotCopied(Record):
    """What a copied directory holds and the workspace does not: pipes, sockets, devices, what changed meanwhile."""

    count: int
    entries: tuple[str, ...] = Field(description="the first 20 of them, and why")


class SessionRecord(Record):
    """A session as the store keeps it."""

    id: str
    principal: str
    root_id: str = Field(description="the first ancestor; its own id for a root")
    parent_id: str | None = None
    forked_from: str | None = Field(default=None, description="checkpoint it was forked from")
    title: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    state: SessionState
    turn: int = Field(default=0, description="number of the latest turn; 0 before the first")
    model: str | None = None
    system_prompt: str | None = None
    policy: str = "workspace"
    tools: tuple[str, ...] | None = Field(default=None, description="tools asked for; None: all of the policy's")
    max_turns: int | None = None
    output_schema: dict[str, Any] | None = None
    budget_nano_usd: int | None = Field(default=None, description="total cap of the session")
    workspace: dict[str, Any] | None = Field(
        default=None, description="what the workspace is filled from at the start and, by NOT_COPIED, all but what"
    )
    sandbox_kind: str
    sandbox: dict[str, Any] | None = Field(default=None, description="the provider's reference")
    transcript_cuts: tuple[tuple[int, int], ...] = Field(
        default=(), description="entries of the transcript (first, last) that a rewind took out of the conversation"
    )
    pending_notice: str | None = Field(default=None, description="what the agent is told before its next prompt")
    owner: str | None = Field(default=None, description="id of the server process whose lease it carries")
    resident: bool = Field(default=False, description="whether it has a live agent process")
    request_id: str | None = None
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None = None
    parent_policies: tuple[tuple[str, tuple[str, ...] | None], ...] | None = Field(
        default=None, description="policy and tools of each ancestor that spawned it, the first one first; None: a root"
    )
    budget_tokens: int | None = Field(default=None, description="total cap of the session in tokens of all kinds")
    token_id: str | None = Field(default=None, description="API token that it was spawned with")

    @property
    def not_copied(self) -> NotCopied | None:
        """What of the directory that its workspace was copied from the workspace did not get; None: nothing."""
        kept = None if self.workspace is None else self.workspace.get(NOT_COPIED)
        return None if kept is None else NotCopied.model_validate(kept)
