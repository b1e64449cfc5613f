"""Questions that a policy sends to a person: asked, waited for while they are hot, put off when they are not.

The hook itself waits for the answer as long as the question is hot (``ROOKERY_APPROVAL_HOT_S``); then the call is
deferred, the agent may go to sleep, and the answer, hours later or after a restart, wakes it and the very call runs
(DESIGN section 4). A question is bound to its exact request, answered once, and expires to a denial.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Final

import anyio
import structlog

from policies import Decision, Effect, ToolRequest
from server.agent.permissions import Verdict
from server.bounded import bounded
from server.changes import Changes
from server.errors import RookeryError
from server.models import ApprovalRecord, ApprovalStatus, EventKind, SessionRecord, SessionState
from server.permissions.put_off import finished, owed
from server.services import Services

log = structlog.get_logger(__name__)

OURSELVES: Final = "rookery"
"""Who refused a call whose question was set aside."""

MAX_SUMMARY: Final = 300
"""Longest summary of a call, in characters."""


class ApprovalDesk:
    """Asks the questions of one session."""

    def __init__(self, services: Services, session: SessionRecord, changes: Changes) -> None:
        self._services = services
        self._session = session
        self._changes = changes
        self._waiting = 0
        self._asked = False
        self._moving = anyio.Lock()

    async def ask(
        self, request: ToolRequest, tool_use_id: str, decision: Decision, turn: int, *, hot: bool = True
    ) -> Verdict:
        """Put a call to a person; the answer, or ``defer`` when none came while the question was hot, if it is.

        A call that was asked before (it comes again after the agent slept) meets its own question again, and so does
        one that is made again after its question was set aside.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        self._asked = True
        approval = await self._question(request, tool_use_id, decision, turn)
        if approval.status is not ApprovalStatus.PENDING:
            ran = await finished(self._services.store, self._session.id)
            if approval.status is ApprovalStatus.ALLOWED and tool_use_id in ran:
                return Verdict(Effect.DENY, "This call ran already: a person's answer holds for once.", by=OURSELVES)
            return _verdict(approval)
        put_off = Verdict(Effect.ASK, "Waiting for a person to answer.", defer=True)
        if not hot:
            return put_off
        await self._enter()
        try:
            with anyio.move_on_after(self._services.settings.approval_hot_s):
                while True:
                    seen = await self._services.store.last_seq(self._session.id)
                    current = await self._services.store.approval(approval.principal, approval.id)
                    if current.status is not ApprovalStatus.PENDING:
                        return _verdict(current)
                    if current.expires_at <= self._services.clock.now():
                        await self._services.store.expire_approvals()
                        continue
                    await self._changes.wait([self._session.id], {self._session.id: seen}, 1.0)
        finally:
            with anyio.CancelScope(shield=True):
                await self._leave()
        return put_off

    async def set_aside(self, request: ToolRequest, tool_use_id: str, because: str) -> Verdict:
        """Refuse a call for the moment and leave its question open; or what a person answered at the last moment.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        refused = Verdict(Effect.DENY, because, by=OURSELVES)
        known = await self._known(request, tool_use_id)
        if known is None:
            return refused
        known = await self._services.store.set_aside(known.principal, known.id)
        return refused if known.status is ApprovalStatus.PENDING else _verdict(known)

    async def close_questions(self) -> None:
        """Let the questions of a turn that was stopped expire: no answer could set anything in motion.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        if self._asked:
            await self._services.store.expire_approvals(self._session.id)

    async def has_unfinished(self) -> bool:
        """Whether some call that was asked about has had no result yet.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        return bool(await owed(self._services.store, self._session))

    async def _known(self, request: ToolRequest, tool_use_id: str) -> ApprovalRecord | None:
        """The question about this very call, if it was asked before."""
        for known in await self._services.store.approvals(self._session.principal, self._session.id, pending=False):
            if known.tool_use_id == tool_use_id and known.input_digest == request.digest:
                return known
        return None

    async def _question(self, request: ToolRequest, tool_use_id: str, decision: Decision, turn: int) -> ApprovalRecord:
        store, now = self._services.store, self._services.clock.now()
        known = await self._known(request, tool_use_id)
        if known is None:
            known = await store.take_up(self._session.id, request.digest, tool_use_id, turn)
        if known is not None:
            return known
        longest = self._services.settings.approval_ttl_s
        approval = ApprovalRecord(
            id=self._services.clock.identifier("ap"),
            session_id=self._session.id,
            principal=self._session.principal,
            turn=turn,
            tool_use_id=tool_use_id,
            tool=request.tool,
            input_digest=request.digest,
            summary=summary(request),
            input=dict(request.input),
            rule=decision.rule or "default",
            created_at=now,
            expires_at=now + timedelta(seconds=min(decision.ask_ttl_s or longest, longest)),
        )
        await store.add_approval(approval)
        data = {"approval_id": approval.id, "tool": approval.tool, "summary": approval.summary, "status": "pending"}
        await store.append_events(self._session.id, turn, [(EventKind.APPROVAL, data)])
        return approval

    async def _enter(self) -> None:
        async with self._moving:
            self._waiting += 1
            if self._waiting == 1:
                await self._move(SessionState.AWAITING_APPROVAL, SessionState.RUNNING)

    async def _leave(self) -> None:
        async with self._moving:
            self._waiting -= 1
            if self._waiting == 0:
                await self._move(SessionState.RUNNING, SessionState.AWAITING_APPROVAL)

    async def _move(self, to: SessionState, expect: SessionState) -> None:
        try:
            await self._services.store.move(self._session.id, to, expect={expect})
        except RookeryError as error:
            # The turn was interrupted or ended meanwhile: its state is written by whoever did that.
            log.info("state did not follow an approval", session_id=self._session.id, error=str(error))


def _verdict(approval: ApprovalRecord) -> Verdict:
    note = f" {approval.note}" if approval.note else ""
    match approval.status:
        case ApprovalStatus.ALLOWED:
            return Verdict(Effect.ALLOW, f"A person allowed this call.{note}", by=approval.decided_by)
        case ApprovalStatus.DENIED:
            return Verdict(Effect.DENY, f"A person denied this call.{note}", by=approval.decided_by)
        case _:
            return Verdict(Effect.DENY, "approval_expired: nobody answered in time, so the call is denied.")


def summary(request: ToolRequest) -> str:
    """A call in one line, for the person who decides."""
    for key in ("command", "file_path", "notebook_path", "url", "query", "pattern"):
        value = request.input.get(key)
        if isinstance(value, str):
            return bounded(f"{request.tool}: {' '.join(value.split())}", MAX_SUMMARY)
    return bounded(f"{request.tool}: {json.dumps(dict(request.input), default=str)}", MAX_SUMMARY)
