"""What the tools stand on: the registry as they see it, and how a call reaches it.

The tools know the registry by its shape only. So the server can answer ``initialize`` before anything slow is
imported, and a test can put a double in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from server.callers import Caller
from server.errors import ErrorCode
from server.models import ApprovalRecord, CheckpointRecord, Outcome
from server.requests import CostRequest, ListRequest, PromptRequest, SpawnRequest
from server.views import (
    Activity,
    Census,
    CostReport,
    Deletion,
    DiffReport,
    FileContent,
    FileListing,
    Heads,
    PatchReport,
    PolicyExplanation,
    Progress,
    RewindReport,
    SessionPage,
    SessionView,
    TranscriptPage,
    TurnStatus,
    WrittenFile,
)


class Sessions(Protocol):
    """What may be asked about sessions, also by an agent about those that it spawned."""

    async def spawn(self, principal: str, request: SpawnRequest, *, token_id: str | None = None) -> str:
        """Start a session; its id, once it is durable. An already seen ``request_id`` gives the first session."""
        ...

    async def prompt(self, principal: str, session_id: str, request: PromptRequest) -> int:
        """Start the next turn; its number."""
        ...

    async def outcome(self, principal: str, session_id: str) -> Outcome:
        """Where the session stands, with the result of its latest turn."""
        ...

    async def turn_status(self, principal: str, session_id: str, number: int) -> TurnStatus:
        """One turn by its number, also when later ones have followed."""
        ...

    async def progress(self, principal: str, session_id: str) -> Progress:
        """What the agent does now, for people who wait."""
        ...

    async def wait_for_change(
        self, principal: str, session_ids: Sequence[str], after: Mapping[str, int], timeout_s: float
    ) -> None:
        """Return when one of the sessions has an event newer than ``after[id]``, or after ``timeout_s``."""
        ...

    async def get(self, principal: str, session_id: str) -> SessionView: ...

    async def list(self, principal: str, request: ListRequest) -> SessionPage: ...

    async def transcript(self, principal: str, session_id: str, *, after: int, limit: int) -> TranscriptPage: ...

    async def interrupt(self, principal: str, session_id: str) -> None: ...

    async def end(self, principal: str, session_id: str, *, delete: bool, descendants: bool = False) -> Deletion: ...

    async def costs(self, principal: str, request: CostRequest) -> CostReport: ...

    async def list_files(
        self, principal: str, session_id: str, path: str = ".", depth: int = 1, limit: int = 500
    ) -> FileListing: ...

    async def read_file(
        self, principal: str, session_id: str, path: str, offset: int = 0, limit: int = 65_536
    ) -> FileContent: ...

    async def create_checkpoint(self, principal: str, session_id: str, label: str = "") -> CheckpointRecord: ...

    async def rewind(
        self, principal: str, session_id: str, checkpoint_id: str, *, dry_run: bool, conversation: bool
    ) -> RewindReport: ...

    async def write_file(self, principal: str, session_id: str, path: str, data: bytes) -> WrittenFile: ...

    async def diff(
        self,
        principal: str,
        session_id: str,
        *,
        from_checkpoint_id: str | None,
        to_checkpoint_id: str | None,
        paths: Sequence[str] | None,
        max_bytes: int,
    ) -> DiffReport: ...

    async def export(
        self,
        principal: str,
        session_id: str,
        *,
        from_checkpoint_id: str | None,
        to_checkpoint_id: str | None,
        paths: Sequence[str] | None,
    ) -> PatchReport: ...


class Registry(Sessions, Protocol):
    """All that a caller may ask of the fleet. Every method raises :class:`~server.errors.RookeryError` only."""

    async def wait_for_any_change(self, timeout_s: float) -> None:
        """Return when this process has changed some session, or after ``timeout_s``."""
        ...

    async def heads(self, principal: str, session_ids: Sequence[str]) -> Heads:
        """Where the principal's sessions stand; foreign and missing ones are left out."""
        ...

    async def policy_names(self) -> Sequence[str]:
        """The policies that a session may name."""
        ...

    async def fork(
        self,
        principal: str,
        session_id: str,
        *,
        prompt: str | None,
        checkpoint_id: str | None,
        count: int,
        request_id: str | None = None,
    ) -> Sequence[str]:
        """Fork a session. An already seen ``request_id`` gives the forks that it gave first."""
        ...

    async def patch(
        self,
        principal: str,
        session_id: str,
        *,
        from_checkpoint_id: str | None = None,
        to_checkpoint_id: str | None = None,
        paths: Sequence[str] | None = None,
    ) -> bytes:
        """All changes since the session began, as a patch."""
        ...

    async def list_approvals(self, principal: str, session_id: str | None = None) -> Sequence[ApprovalRecord]: ...

    async def answer_approval(
        self, principal: str, approval_id: str, *, allow: bool, note: str = "", by: str | None = None
    ) -> ApprovalRecord: ...

    async def explain_policy(
        self, principal: str, *, session_id: str | None, policy: str | None, tool: str, tool_input: Mapping[str, Any]
    ) -> PolicyExplanation: ...

    async def caller_of_token(self, secret: str) -> Caller | None:
        """Who shows this API token; None when it is not good."""
        ...

    @property
    def activity(self) -> Activity:
        """What the agents of this process do now."""
        ...

    def failed(self, code: ErrorCode) -> None:
        """Note that a call was answered with an error, for the metrics."""
        ...

    async def census(self) -> Census:
        """What there is of everybody, for the operator."""
        ...

    async def prune(self) -> int:
        """Delete ended sessions whose retention is over; how many."""
        ...


class Backend(Protocol):
    """Gives the registry once it is ready: it starts after ``initialize`` was answered."""

    async def registry(self) -> Registry:
        """The registry, waiting for its start if need be.

        Raises:
            RookeryError: it could not start; a later call tries again.
        """
        ...
