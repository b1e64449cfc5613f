"""What the registry answers beside the outcome: sessions, pages, transcripts, files and costs, ready to be shown."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from server.models import Cost, Event, NotCopied, Outcome, Record, SessionState


class SessionSummary(Record):
    """One line of a list."""

    session_id: str
    title: str
    state: SessionState
    turn: int
    labels: dict[str, str] = Field(default_factory=dict)
    model: str | None = None
    parent_id: str | None = None
    usd: float = 0.0
    created_at: datetime
    updated_at: datetime


class SessionPage(Record):
    """A page of sessions; ``cursor`` continues it, null at the end."""

    sessions: tuple[SessionSummary, ...]
    cursor: str | None = None


class CheckpointSummary(Record):
    """A point to return to."""

    checkpoint_id: str
    turn: int
    kind: Literal["turn_start", "turn_end", "manual", "undo"]
    label: str = ""
    files: int = 0
    created_at: datetime


class SessionView(Record):
    """All about one session."""

    session_id: str
    title: str
    labels: dict[str, str]
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    parent_id: str | None
    root_id: str
    forked_from: str | None
    model: str | None
    policy: str
    sandbox: str
    resident: bool
    waiting: str | None = Field(
        default=None, description="what the agent's model request waits for, as in rate_limited until 12:00:00 UTC"
    )
    budget_usd: float | None
    budget_tokens: int | None = Field(default=None, description="cap in tokens of all kinds")
    activity: str = Field(description="what the agent does now, or did last, in a few words")
    checkpoints: tuple[CheckpointSummary, ...] = ()
    not_copied: NotCopied | None = Field(
        default=None, description="what of the directory it was given its workspace did not get; null: nothing"
    )
    outcome: Outcome = Field(description="outcome of the latest turn; its cost is that of the whole session")


class TranscriptPage(Record):
    """Events after a cursor, oldest first."""

    session_id: str
    events: tuple[Event, ...]
    cursor: int = Field(description="pass as `after` to read on")
    more: bool = Field(description="whether events are left now")


class Activity(Record):
    """What the agents of one server process do."""

    resident: int = Field(default=0, description="sessions with a live process")
    working: int = Field(default=0, description="those of them in a turn")


class Progress(Record):
    """Where a running turn is, for people who wait."""

    step: int = Field(description="sequence number of the latest event: only ever grows")
    text: str
    usd: float
    budget_percent: int = Field(default=0, description="how much of the session's budget is spent")


class TurnStatus(Record):
    """One turn of a session, for those who follow it by its number."""

    outcome: Outcome = Field(description="the outcome of this turn, also when later ones have followed")
    over: bool = Field(description="whether the turn has ended for good: one that awaits an approval has not")
    activity: str = Field(description="what the agent does now, or did last, in a few words")
    started_at: datetime
    updated_at: datetime


class Heads(Record):
    """Where a principal's sessions stand, as cheaply as it can be asked: what differs has changed."""

    listed: str = Field(description="differs when a session was added or deleted")
    sequences: dict[str, int] = Field(description="latest event of each session that was asked for and exists")


class FileEntry(Record):
    """One entry of a workspace directory."""

    path: str = Field(description="relative to the workspace; undecodable bytes appear as backslash escapes")
    kind: Literal["file", "directory", "symlink", "other"]
    size: int
    mode: str = Field(description="octal permission bits, as in 0644")
    modified_at: datetime
    target: str | None = Field(default=None, description="where a symlink points")


class FileListing(Record):
    """Entries below a workspace path, sorted by path."""

    session_id: str
    path: str
    entries: tuple[FileEntry, ...]
    truncated: bool = False


class FileContent(Record):
    """A part of one file."""

    session_id: str
    path: str
    size: int
    offset: int
    text: str | None = Field(default=None, description="the content when it is UTF-8 text")
    base64: str | None = Field(default=None, description="the content when it is not")
    next_offset: int | None = Field(default=None, description="where to read on, null at the end")
    uri: str | None = Field(default=None, description="resource that holds the whole file, when this is a part")


class CostGroup(Record):
    """Costs of one group."""

    key: str
    cost: Cost


class BudgetView(Record):
    """How one cap stands. Null: there is no cap of this kind."""

    scope: Literal["session", "tree", "principal", "day", "token"]
    budget_usd: float | None = None
    spent_usd: float = 0.0
    reserved_usd: float = Field(default=0.0, description="held by model requests under way: mostly more than they cost")
    allotted_usd: float = Field(default=0.0, description="set aside for spawned children that have not spent it yet")
    remaining_usd: float | None = None
    budget_tokens: int | None = Field(default=None, description="tokens of all kinds")
    spent_tokens: int = 0
    reserved_tokens: int = 0
    allotted_tokens: int = 0
    remaining_tokens: int | None = None


class CostReport(Record):
    """Costs of a session, a tree, or all of the principal's."""

    scope: Literal["session", "tree", "principal"]
    session_id: str | None
    total: Cost
    cache_hit_rate: float | None = Field(description="cached part of all input tokens, 0 to 1; null without input")
    budget_usd: float | None = Field(description="the session's own cap; null for a tree or everything")
    budget_remaining_usd: float | None
    budgets: tuple[BudgetView, ...] = Field(default=(), description="every cap that binds here, the session's first")
    groups: tuple[CostGroup, ...] = ()
    group_by: str | None = None
    sdk_usd: float | None = Field(default=None, description="the SDK's own figure for a single session")
    sdk_note: str = Field(default="", description="why the SDK's figure differs from the ledger's, if it does")
    note: str = ""


class Deletion(Record):
    """What `end_session` did."""

    session_id: str
    state: SessionState
    deleted: bool
    descendants_ended: int = 0
    details: dict[str, Any] = Field(default_factory=dict)


class FileChange(Record):
    """One file that differs between two states of a workspace."""

    path: str
    change: Literal["added", "changed", "removed"]
    size: int | None = Field(default=None, description="bytes afterwards; null when removed")
    lines_added: int | None = Field(default=None, description="null for binary or very large files")
    lines_removed: int | None = None


class RewindReport(Record):
    """What `rewind_files` did, or would do."""

    session_id: str
    checkpoint_id: str
    dry_run: bool
    conversation: bool = Field(description="whether the conversation goes back too")
    undo_checkpoint_id: str | None = Field(default=None, description="rewind to this to undo; null on a dry run")
    files_added: int
    files_changed: int
    files_removed: int
    files: tuple[FileChange, ...] = Field(default=(), description="at most 200 of them")
    skipped: tuple[str, ...] = Field(
        default=(), description="at most 200 entries that checkpoints do not hold: they stay, or cannot come back"
    )
    skipped_count: int = Field(default=0, description="how many there are; of one tree at most 1,000 are counted")
    next: str = ""


class ForkReport(Record):
    """What `fork_session` made."""

    session_id: str = Field(description="the original, which is not touched")
    checkpoint_id: str | None = Field(description="where the forks begin; null: at its present")
    forks: tuple[Outcome, ...] = Field(description="one for each fork")
    next: str = ""


class WrittenFile(Record):
    """What `write_file` wrote."""

    session_id: str
    path: str
    size: int
    created: bool = Field(description="whether there was no such file before")


class DiffReport(Record):
    """What differs between two states of a workspace."""

    session_id: str
    from_checkpoint_id: str | None
    to_checkpoint_id: str | None = Field(description="null: the present")
    files_added: int
    files_changed: int
    files_removed: int
    files: tuple[FileChange, ...] = Field(default=(), description="at most 200 of them")
    diff: str = Field(default="", description="unified diff for reading")
    skipped: tuple[str, ...] = Field(
        default=(), description="at most 200 entries that a checkpoint does not hold: changes in them do not show"
    )
    skipped_count: int = Field(default=0, description="how many there are; of one tree at most 1,000 are counted")
    truncated: bool = False
    uri: str | None = Field(default=None, description="resource that holds the whole as a patch, when it is cut")


class PatchReport(Record):
    """The changes as a patch that `git apply` takes."""

    session_id: str
    from_checkpoint_id: str | None
    to_checkpoint_id: str | None = Field(description="null: the present")
    files: int
    size: int = Field(description="bytes of the whole patch")
    patch: str | None = Field(default=None, description="the patch when it is UTF-8 text and not too long")
    base64: str | None = Field(default=None, description="the patch when it is not UTF-8 and not too long")
    preview: str | None = Field(default=None, description="its beginning, when it is too long to be given here")
    uri: str = Field(description="resource that holds the whole patch")
    omitted: tuple[str, ...] = Field(default=(), description="what a patch cannot carry, and why")


class ApprovalView(Record):
    """A question that a policy put to a person."""

    approval_id: str
    session_id: str
    turn: int
    tool: str
    summary: str
    input: dict[str, Any]
    rule: str
    status: str
    note: str = ""
    decided_by: str | None = None
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None = None


class Approvals(Record):
    """Open questions, oldest first."""

    approvals: tuple[ApprovalView, ...]
    next: str = ""


class PolicyMatch(Record):
    """A rule that applied."""

    rule: str
    effect: str
    layer: str
    because: str
    part: str = Field(default="", description="the part of the call that it matched")
    file: str | None = None
    line: int | None = None


class PolicyExplanation(Record):
    """What a policy says about a call, and why."""

    policy: str
    digest: str = Field(description="hash of the whole policy")
    tool: str
    decision: Literal["allow", "ask", "deny"]
    rule: str | None = Field(description="the rule that decided; null: the default")
    because: str
    matched: tuple[PolicyMatch, ...] = ()
    input: dict[str, Any] | None = Field(default=None, description="what the call would run with, if it is rewritten")


class Census(Record):
    """What there is of everybody's, for the operator: no principal, no session."""

    states: dict[SessionState, int] = Field(description="sessions in the store by state")
    approvals_waiting: int
    agents: int = Field(description="agents that live in this process")
