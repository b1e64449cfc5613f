"""The records of the house: what the store keeps and what the tools answer with.

Records are frozen pydantic models. Money is kept in integer nano-dollars (10⁻⁹ USD), so that sums are exact; only
the outermost answers turn it into dollars. Times are UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from server.callers import Scope
from server.errors import ErrorCode, RookeryError

NANO_USD: Final = 1_000_000_000
"""Nano-dollars in a dollar."""


NOT_COPIED: Final = "not_copied"
"""Key beside the source of a session's workspace: a :class:`NotCopied`."""


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class StopReason(StrEnum):
    """Why a turn stopped. Closed (DESIGN section 2)."""

    END_TURN = "end_turn"
    INTERRUPTED = "interrupted"
    AWAITING_APPROVAL = "awaiting_approval"
    BUDGET_EXCEEDED = "budget_exceeded"
    MAX_TURNS = "max_turns"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    ERROR = "error"


class Failure(Record):
    """An error as a caller sees it."""

    code: ErrorCode = Field(description="what went wrong, of a closed set")
    message: str = Field(description="what happened and what to do")
    retryable: bool = Field(description="whether the same call may succeed later")

    @classmethod
    def of(cls, error: RookeryError) -> Failure:
        return cls(code=error.code, message=error.message, retryable=error.retryable)


class Usage(Record):
    """Tokens of one or many model requests, by kind."""

    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    cache_read_tokens: int = Field(default=0, ge=0)
    cache_write_tokens: int = Field(default=0, ge=0, description="5-minute and 1-hour cache writes together")
    cache_write_1h_tokens: int = Field(default=0, ge=0, description="the part of them that lives an hour")
    server_tool_requests: int = Field(default=0, ge=0, description="web searches and fetches run by the provider")

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cache_write_1h_tokens=self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            server_tool_requests=self.server_tool_requests + other.server_tool_requests,
        )


class Cost(Record):
    """What model requests cost, as answered by tools. Sums are the ledger's."""

    usd: float = Field(default=0.0, description="dollars of all requests with a known price, and of sandboxes")
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    requests: int = Field(default=0, description="model requests, failed ones included")
    failures: int = Field(default=0, description="model requests that failed")
    unpriced_requests: int = Field(default=0, description="requests whose model has no known price; not in usd")
    sandbox_seconds: float = Field(default=0.0, description="how long a sandbox ran")
    sandbox_usd: float = Field(default=0.0, description="the part of usd that sandboxes cost")


class LedgerEntry(Record):
    """One model request, written once by the gateway: the truth for costs (DESIGN section 2)."""

    id: str
    principal: str
    session_id: str
    root_id: str
    turn: int = Field(description="the session's turn it belongs to; 0 before the first")
    model: str
    upstream_request_id: str | None = None
    status: int = Field(description="HTTP status given to the sandbox; 0 when the upstream could not be reached")
    complete: bool = Field(description="False when the stream was cut, by either side")
    error: str | None = Field(default=None, description="the error's type, as the Messages API names it")
    usage: Usage
    estimated: bool = Field(
        default=False,
        description="the usage is a conservative estimate: the upstream's own figures were missing or bad",
    )
    nano_usd: int | None = Field(description="price in nano-dollars; None when the model's price is unknown")
    price_source: str | None = None
    started_at: datetime
    ended_at: datetime
    fallback_from: str | None = Field(
        default=None, description="the model that the agent asked for, when another one answered in its place"
    )


class SandboxTime(Record):
    """A stretch of time for which a session had a sandbox running: a line of the ledger, written once."""

    id: str
    principal: str
    session_id: str
    root_id: str
    kind: str = Field(description="the provider")
    started_at: datetime
    ended_at: datetime
    milliseconds: int = Field(ge=0, description="by a clock that never jumps, unlike the two above")
    nano_usd: int = Field(ge=0)


class RunningSandbox(Record):
    """A session's sandbox that runs, and what its next line in the ledger will say."""

    session_id: str
    line_id: str = Field(description="the id of its next line, so that whoever writes that writes it once")
    owner: str = Field(description="the server that meters it")
    principal: str
    root_id: str
    kind: str = Field(description="the provider")
    since: datetime = Field(description="where its next line begins")
    nano_usd_per_s: int = Field(ge=0)
    lasts_s: int = Field(ge=0, description="how long it runs on, and costs, without its server")

    def line(self, ended_at: datetime, milliseconds: int) -> SandboxTime:
        """The line for the stretch that ended."""
        return SandboxTime(
            id=self.line_id,
            principal=self.principal,
            session_id=self.session_id,
            root_id=self.root_id,
            kind=self.kind,
            started_at=self.since,
            ended_at=ended_at,
            milliseconds=milliseconds,
            nano_usd=-(-milliseconds * self.nano_usd_per_s // 1000),
        )


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


class TokenRecord(Record):
    """An API token as the store keeps it: without its secret."""

    id: str
    name: str = Field(description="what people call it")
    principal: str = Field(description="whose sessions its holder sees")
    digest: str = Field(description="SHA-256 of the secret")
    scopes: tuple[Scope, ...]
    budget_nano_usd: int | None = Field(default=None, description="cap of all sessions that were spawned with it")
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    used_at: datetime | None = Field(default=None, description="last use, to within a minute or so")


class TurnOrigin(StrEnum):
    PROMPT = "prompt"
    BACKGROUND = "background"
    """A result that no prompt asked for: a background task of the agent woke it (DESIGN section 3.4)."""


class TurnRecord(Record):
    """One turn: a prompt and all the agent did until it stopped."""

    session_id: str
    number: int
    origin: TurnOrigin = TurnOrigin.PROMPT
    prompt: str
    request_id: str | None = None
    stop_reason: StopReason | None = Field(default=None, description="None while it runs")
    text: str = ""
    structured_output: Any = None
    error: Failure | None = None
    denials: int = 0
    changed_files: tuple[str, ...] = ()
    checkpoint_id: str | None = Field(default=None, description="checkpoint of its start")
    end_checkpoint_id: str | None = None
    sdk_cost_usd: float | None = Field(default=None, description="the SDK's own cumulative figure, for comparison")
    started_at: datetime
    ended_at: datetime | None = None


class EventKind(StrEnum):
    """Kinds of entries in a session's log. ``data`` of each is described at the place that writes it."""

    STATE = "state"
    TURN_STARTED = "turn_started"
    TURN_ENDED = "turn_ended"
    TEXT = "text"
    THINKING = "thinking"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    DENIAL = "denial"
    CHECKPOINT = "checkpoint"
    REWIND = "rewind"
    FORK = "fork"
    APPROVAL = "approval"
    BUDGET = "budget"
    NOTICE = "notice"


class Event(Record):
    """One entry of a session's append-only log."""

    session_id: str
    seq: int = Field(description="1, 2, 3 … without gaps within the session")
    at: datetime
    turn: int
    kind: EventKind
    data: dict[str, Any] = Field(default_factory=dict)


class ApprovalStatus(StrEnum):
    """Where an approval stands. Only a pending one can be decided, once."""

    PENDING = "pending"
    ALLOWED = "allowed"
    DENIED = "denied"
    EXPIRED = "expired"
    """Nobody answered in time: the same as denied."""


class ApprovalRecord(Record):
    """A tool call that a policy sent to a human or to the orchestrator."""

    id: str
    session_id: str
    principal: str
    turn: int
    tool_use_id: str
    tool: str
    input_digest: str = Field(description="digest of the input: what was allowed is this call and no other")
    summary: str
    input: dict[str, Any]
    rule: str = Field(description="the rule of the policy that asks")
    status: ApprovalStatus = ApprovalStatus.PENDING
    note: str = Field(default="", description="words of the one who decided, for the agent")
    decided_by: str | None = None
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None = None
    set_aside: bool = Field(
        default=False, description="its call was refused for the moment: the answer is for the same call, made again"
    )


class Decider(StrEnum):
    """Who decided on a tool call."""

    RULE = "rule"
    """The policy: a rule of it, its default, or a check built into the engine."""
    HUMAN = "human"
    """The one who answered the question, or nobody in time."""
    HOOK = "hook"
    """A hook of the user that tightened what the policy said."""


class DecisionRecord(Record):
    """One decision on a tool call, as the audit keeps it."""

    id: str
    at: datetime
    principal: str
    session_id: str
    turn: int
    tool_use_id: str
    tool: str
    policy: str = Field(description="name of the policy")
    policy_digest: str = Field(description="SHA-256 over all layers that decided")
    request_digest: str = Field(description="SHA-256 over the exact request; the input itself is in the transcript")
    decision: str = Field(description="allow, ask or deny")
    rule: str | None = Field(description="the rule that decided; None: the policy's default")
    because: str
    matched: tuple[str, ...] = Field(description="every rule that applied, as layer:rule")
    rewritten: bool = Field(description="whether the call ran with another input than the agent gave")
    decider: Decider
    decided_by: str | None = Field(default=None, description="the person, or the hook")
    latency_us: int = Field(description="microseconds that the decision took; of a person's, the wait included")


class CheckpointKind(StrEnum):
    """Why a checkpoint was taken."""

    TURN_START = "turn_start"
    TURN_END = "turn_end"
    MANUAL = "manual"
    UNDO = "undo"
    """Taken before a rewind, so that the rewind can be undone."""


class CheckpointRecord(Record):
    """A point to return to: the workspace's whole tree and the length of the transcript (DESIGN section 6)."""

    id: str
    session_id: str
    principal: str
    turn: int
    kind: CheckpointKind
    label: str = ""
    tree: str = Field(description="digest of the manifest of the tree")
    files: int = Field(default=0, ge=0, description="files in the tree")
    bytes: int = Field(default=0, ge=0, description="size of the tree in bytes")
    transcript_length: int = Field(ge=0, description="entries of the mirrored transcript, subagents' included")
    transcript_cuts: tuple[tuple[int, int], ...] = Field(default=(), description="the session's cuts at that moment")
    created_at: datetime


class ServerRecord(Record):
    """A server process that shares this store."""

    id: str
    pid: int
    host: str
    started_at: datetime
    heartbeat_at: datetime
    silent_for: timedelta = timedelta()
    """Since the heartbeat, by the clock that it was written by; told when it is read."""


class Command(Record):
    """A request for a session that another server process owns."""

    id: str
    session_id: str
    kind: str
    payload: dict[str, Any]
    created_at: datetime


class PendingApproval(Record):
    """A question that waits for its answer, as shown in outcomes."""

    approval_id: str
    tool: str
    summary: str
    expires_at: datetime


class Outcome(Record):
    """The one envelope that spawn, continue, fork and wait answer with (DESIGN section 7)."""

    session_id: str
    state: SessionState
    turn: int
    stop_reason: StopReason | None = Field(default=None, description="why the latest turn stopped; null till then")
    text: str = Field(default="", description="the agent's final words of the latest turn")
    structured_output: Any = Field(default=None, description="the answer in the form of output_schema")
    error: Failure | None = None
    cost: Cost = Field(default_factory=Cost)
    budget_remaining_usd: float | None = None
    checkpoint_id: str | None = Field(default=None, description="the start of this turn: rewind or fork from here")
    pending_approvals: tuple[PendingApproval, ...] = ()
    denials: int = Field(default=0, description="tool calls the policy denied in this turn")
    changed_files: tuple[str, ...] = ()
    not_copied: NotCopied | None = Field(
        default=None, description="what of the given directory the workspace did not get; in the first turn's outcome"
    )
    cursor: int = Field(default=0, description="sequence number of the latest event, for read_transcript(after=…)")
    next: str = Field(default="", description="what to call next")
