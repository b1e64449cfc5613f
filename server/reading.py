"""Everything that can be asked of sessions without touching an agent: read from the store and the workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import anyio
import anyio.to_thread

from policies import Facts, Policy, ToolRequest
from policies.layer import spawns
from policies.types import LinkLookup
from server.budgets import caps_of
from server.changes import Changes
from server.errors import ErrorCode, RookeryError
from server.explaining import explain
from server.files import ReadableFiles, list_files, read_file
from server.models import (
    NANO_USD,
    DecisionRecord,
    Event,
    EventKind,
    Outcome,
    PendingApproval,
    SessionRecord,
)
from server.permissions.history import CallHistory
from server.requests import CostRequest, ListRequest
from server.resting import readable_files
from server.services import Services
from server.store.portraits import Portrait
from server.taking_home import TakingHome
from server.undo import Undo
from server.views import (
    CheckpointSummary,
    CostReport,
    DiffReport,
    FileContent,
    FileListing,
    Heads,
    PatchReport,
    PolicyExplanation,
    Progress,
    SessionPage,
    SessionView,
    TranscriptPage,
    TurnStatus,
)

MAX_TRANSCRIPT: Final = 500
"""Most events in one page."""


class SessionReader:
    """Answers questions. Every look-up is by (principal, id): a foreign id reads as not found."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._changes = Changes(services.store)
        self._undo = Undo(services)
        self._home = TakingHome(services, self._undo)

    async def outcome(self, principal: str, session_id: str) -> Outcome:
        """Where the session stands, with the result of its latest turn; costs are the session's so far."""
        return _outcome(await self._services.store.portrait(principal, session_id))

    async def turn_status(self, principal: str, session_id: str, number: int) -> TurnStatus:
        """One turn by its number, with the outcome as it was left by this turn.

        Raises:
            RookeryError: ``session_not_found``: there is no such session, or no such turn in it.
        """
        seen = await self._services.store.portrait(principal, session_id, turn=number)
        session, turn, latest = seen.session, seen.turn, seen.latest
        over = session.turn > number or not session.state.is_busy
        return TurnStatus(
            outcome=_outcome(seen),
            over=over,
            activity=_activity(session, latest),
            started_at=turn.started_at,
            updated_at=turn.ended_at or (turn.started_at if over or latest is None else latest.at),
        )

    async def progress(self, principal: str, session_id: str) -> Progress:
        """What the agent does now."""
        seen = await self._services.store.portrait(principal, session_id)
        return Progress(
            step=seen.latest.seq if seen.latest else 0,
            text=self._waiting(seen.session, seen.latest) or _activity(seen.session, seen.latest),
            usd=seen.cost.usd,
            budget_percent=seen.standing.percent,
        )

    def _waiting(self, session: SessionRecord, latest: Event | None) -> str | None:
        """What the session waits for: this process knows of its own requests, of others' by their events."""
        if not session.state.is_busy:
            return None
        until, what = self._services.gateway.waiting_until(session.id), "rate_limited"
        if until is None and latest is not None and latest.kind is EventKind.NOTICE:
            said, what = latest.data.get("waiting_until"), str(latest.data.get("waiting"))
            until = datetime.fromisoformat(said) if isinstance(said, str) else None
        if until is None or until <= self._services.clock.now():
            return None
        return f"{what} until {until:%H:%M:%S} UTC"

    async def wait_for_change(
        self, principal: str, session_ids: Sequence[str], after: Mapping[str, int], timeout_s: float
    ) -> None:
        """Return when one of the sessions has an event newer than ``after[id]``, or after ``timeout_s``."""
        for session_id in session_ids:
            await self._services.store.session(principal, session_id)
        await self._changes.wait(session_ids, after, timeout_s)

    async def wait_for_any_change(self, timeout_s: float) -> None:
        """Return when this process has changed some session, or after ``timeout_s`` seconds."""
        await self._changes.wait_any(timeout_s)

    async def heads(self, principal: str, session_ids: Sequence[str]) -> Heads:
        """Where the principal's sessions stand; a foreign or missing one is left out."""
        return await self._services.store.heads(principal, session_ids)

    async def policy_names(self) -> Sequence[str]:
        """The policies that a session may name.

        Raises:
            RookeryError: ``invalid_argument``: the directory of policies cannot be read.
        """
        return await anyio.to_thread.run_sync(self._services.policies.names)

    async def get(self, principal: str, session_id: str) -> SessionView:
        """All about one session."""
        seen = await self._services.store.portrait(principal, session_id, with_checkpoints=True)
        session, latest = seen.session, seen.latest
        return SessionView(
            session_id=session.id,
            title=session.title,
            labels=session.labels,
            created_at=session.created_at,
            updated_at=session.updated_at,
            ended_at=session.ended_at,
            parent_id=session.parent_id,
            root_id=session.root_id,
            forked_from=session.forked_from,
            model=session.model,
            policy=session.policy,
            sandbox=session.sandbox_kind,
            resident=session.resident,
            waiting=self._waiting(session, latest),
            budget_tokens=session.budget_tokens,
            budget_usd=None if session.budget_nano_usd is None else session.budget_nano_usd / NANO_USD,
            activity=_activity(session, latest),
            not_copied=session.not_copied,
            checkpoints=tuple(
                CheckpointSummary(
                    checkpoint_id=checkpoint.id,
                    turn=checkpoint.turn,
                    kind=checkpoint.kind.value,
                    label=checkpoint.label,
                    files=checkpoint.files,
                    created_at=checkpoint.created_at,
                )
                for checkpoint in seen.checkpoints
            ),
            outcome=_outcome(seen),
        )

    async def list(self, principal: str, request: ListRequest) -> SessionPage:
        """A page of sessions, newest first."""
        return await self._services.store.sessions(principal, request)

    async def transcript(self, principal: str, session_id: str, *, after: int, limit: int) -> TranscriptPage:
        """Events after a cursor, oldest first.

        Raises:
            RookeryError: ``session_not_found``, ``invalid_argument``.
        """
        if after < 0:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "after: must not be negative; 0 reads from the start.")
        if not 1 <= limit <= MAX_TRANSCRIPT:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"limit: must be from 1 to {MAX_TRANSCRIPT}.")
        await self._services.store.session(principal, session_id)
        events = await self._services.store.events(session_id, after=after, limit=limit + 1)
        page = tuple(events[:limit])
        cursor = page[-1].seq if page else after
        return TranscriptPage(session_id=session_id, events=page, cursor=cursor, more=len(events) > limit)

    async def costs(self, principal: str, request: CostRequest) -> CostReport:
        """Costs by the ledger, which outlive their session.

        Raises:
            RookeryError: ``session_not_found``.
        """
        return await self._services.store.cost_report(principal, request, caps_of(self._services.settings))

    async def list_files(
        self, principal: str, session_id: str, path: str = ".", depth: int = 1, limit: int = 500
    ) -> FileListing:
        """Entries of the workspace."""
        files = await self._files(principal, session_id)
        return await list_files(session_id, files, path, depth=depth, limit=limit)

    async def read_file(
        self, principal: str, session_id: str, path: str, offset: int = 0, limit: int = 65_536
    ) -> FileContent:
        """A part of one file of the workspace."""
        files = await self._files(principal, session_id)
        return await read_file(session_id, files, path, offset=offset, limit=limit)

    async def diff(
        self,
        principal: str,
        session_id: str,
        *,
        from_checkpoint_id: str | None,
        to_checkpoint_id: str | None,
        paths: Sequence[str] | None,
        max_bytes: int,
    ) -> DiffReport:
        """What differs between two checkpoints of a session, or one and the present.

        Raises:
            RookeryError: ``session_not_found``, ``checkpoint_not_found``, ``invalid_argument``, ``session_busy``.
        """
        session = await self._services.store.session(principal, session_id)
        return await self._home.diff(session, from_checkpoint_id, to_checkpoint_id, paths, max_bytes)

    async def export(
        self,
        principal: str,
        session_id: str,
        *,
        from_checkpoint_id: str | None,
        to_checkpoint_id: str | None,
        paths: Sequence[str] | None,
    ) -> PatchReport:
        """The changes as a patch that ``git apply`` takes.

        Raises:
            RookeryError: as :meth:`diff`.
        """
        session = await self._services.store.session(principal, session_id)
        return await self._home.export(session, from_checkpoint_id, to_checkpoint_id, paths)

    async def patch(
        self,
        principal: str,
        session_id: str,
        *,
        from_checkpoint_id: str | None = None,
        to_checkpoint_id: str | None = None,
        paths: Sequence[str] | None = None,
    ) -> bytes:
        """The changes between two states as one whole patch; by default all since the session began.

        Raises:
            RookeryError: as :meth:`diff`.
        """
        session = await self._services.store.session(principal, session_id)
        _, patch = await self._home.patch(session, from_checkpoint_id, to_checkpoint_id, paths)
        return patch.data

    async def explain_policy(
        self, principal: str, *, session_id: str | None, policy: str | None, tool: str, tool_input: Mapping[str, Any]
    ) -> PolicyExplanation:
        """What a session's policy, or one by name, says about a call, and why. Asks no one and runs nothing.

        Raises:
            RookeryError: ``session_not_found``, ``invalid_argument``.
        """
        asked: Policy | None = None
        files: ReadableFiles | None = None
        facts = Facts(now=self._services.clock.now().timestamp())
        if session_id is not None:
            session = await self._services.store.session(principal, session_id)
            asked = self._services.policy_of(session)
            facts = await self._standing(session, facts, tool)
            if session.sandbox is not None:
                files = await self._files(principal, session_id)
        chosen = asked or self._services.policy(policy)
        request = ToolRequest(tool=tool, input=dict(tool_input))

        def judge(links: LinkLookup) -> PolicyExplanation:
            return explain(chosen, request, replace(facts, links=links))

        return judge({}) if files is None else await files.judged(judge)

    async def _standing(self, session: SessionRecord, facts: Facts, tool: str) -> Facts:
        """What a session's next call would be judged by: its calls so far, its place in its family."""
        history, store = CallHistory(), self._services.store
        await history.restore(store, session.id)
        return replace(
            facts,
            history=history.before(""),
            turn=session.turn,
            depth=len(session.parent_policies or ()),
            children=await store.children_at_work(session.id) if spawns(tool) else 0,
        )

    async def decisions(
        self, principal: str, *, session_id: str | None = None, decision: str | None = None, limit: int = 100
    ) -> Sequence[DecisionRecord]:
        """The latest decisions on the tool calls of a principal's agents, oldest first; deleted sessions included.

        Args:
            principal: whose agents.
            session_id: of this session only.
            decision: only ``allow``, ``ask`` or ``deny``.
            limit: how many at most.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        await self._services.audit.flush()
        return await self._services.store.decisions(principal, session_id=session_id, decision=decision, limit=limit)

    async def _files(self, principal: str, session_id: str) -> ReadableFiles:
        return await readable_files(self._services, await self._services.store.session(principal, session_id))


def _outcome(seen: Portrait) -> Outcome:
    session, turn, left = seen.session, seen.turn, seen.standing.remaining_nano_usd
    pending = tuple(
        PendingApproval(
            approval_id=approval.id, tool=approval.tool, summary=approval.summary, expires_at=approval.expires_at
        )
        for approval in seen.pending
    )
    return Outcome(
        session_id=session.id,
        state=session.state,
        turn=turn.number,
        stop_reason=turn.stop_reason,
        text=turn.text,
        structured_output=turn.structured_output,
        error=turn.error,
        cost=seen.cost,
        budget_remaining_usd=None if left is None else max(0, left) / NANO_USD,
        checkpoint_id=turn.checkpoint_id,
        pending_approvals=pending,
        denials=turn.denials,
        changed_files=turn.changed_files,
        not_copied=session.not_copied if turn.number == 1 else None,
        cursor=0 if seen.latest is None else seen.latest.seq,
    )


def _activity(session: SessionRecord, latest: Event | None) -> str:
    """What the agent does now, or did last, in a few words."""
    if not session.state.is_busy or latest is None:
        return session.state.value
    data = latest.data
    match latest.kind:
        case EventKind.TOOL_CALL:
            return f"{data.get('tool')}: {_gist(data.get('input'))}"
        case EventKind.TOOL_RESULT:
            return f"{data.get('tool') or 'tool'} finished"
        case EventKind.TEXT:
            return _line(str(data.get("text", "")))
        case EventKind.THINKING:
            return "thinking"
        case EventKind.DENIAL:
            return f"{data.get('tool')} was denied by the policy"
        case EventKind.NOTICE:
            return _line(str(data.get("text", "")))
        case EventKind.BUDGET:
            return f"{data.get('percent')} % of the budget is spent"
        case _:
            return "waiting for the model"


def _gist(given: Any) -> str:
    if isinstance(given, dict):
        for key in ("command", "file_path", "pattern", "path", "url", "description", "prompt"):
            if isinstance(given.get(key), str):
                return _line(given[key])
    return ""


def _line(text: str, limit: int = 120) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"
