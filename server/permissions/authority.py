"""Who decides on a session's tool calls: the policy engine and the user's hooks, every decision written down."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Final

from policies import Decision, Effect, Facts, Policy, ToolRequest, ToolUse, decide
from policies.layer import spawns
from policies.types import LinkLookup
from server.agent.permissions import Verdict
from server.bounded import bounded
from server.changes import Changes
from server.files import WorkspaceFiles
from server.hooks import Objection, PostToolUse, PreToolUse, Subject
from server.models import Decider, DecisionRecord, EventKind, SessionRecord
from server.permissions.approvals import ApprovalDesk
from server.permissions.history import CallHistory
from server.permissions.put_off import PutOff, may_wait_together, next_up
from server.services import Services

ONE_AT_A_TIME: Final = (
    "Nobody has answered the question about this call yet, and it cannot wait for longer beside another. The question "
    "stays open: make this call again by itself, with the same input to the letter, and the answer holds for it."
)


class SessionAuthority:
    """Implements :class:`server.agent.permissions.PermissionAuthority` for one session."""

    def __init__(self, services: Services, session: SessionRecord, changes: Changes) -> None:
        self._services = services
        self._store = services.store
        self._clock = services.clock
        self._session = session
        self._turn = session.turn
        self._denied: Counter[str] = Counter()
        self._history = CallHistory()
        self._desk = ApprovalDesk(services, session, changes)
        self._files: WorkspaceFiles | None = None
        self._rewritten: dict[tuple[str, str], ToolRequest] = {}
        self._cwds: dict[str, str | None] = {}
        self._put_off: dict[str, str] = {}
        """Calls that were put off → their tools."""
        self._fault: str | None = None

    def look_at(self, files: WorkspaceFiles) -> None:
        """Whose links are seen as the sandbox sees them."""
        self._files = files

    async def restore(self) -> None:
        """Read what the session did before it slept.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        await self._history.restore(self._store, self._session.id)

    async def owes_a_call(self) -> bool:
        """Whether the agent will first take up a call that an earlier turn put off and nobody answered in time.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        return await self._desk.has_unfinished()

    async def next_up(self) -> PutOff | None:
        """The call that the agent of a turn that goes on is to take up.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        return await next_up(self._store, self._session)

    @property
    def denials(self) -> int:
        """Calls denied in the present turn, each counted once."""
        return len(self._denied)

    def begin(self, turn: int) -> None:
        """A turn begins."""
        self._turn = turn
        self._denied = Counter(self._history.denied(turn))
        self._rewritten.clear()
        self._cwds.clear()
        self._put_off.clear()

    async def close_questions(self) -> None:
        """The turn was stopped: what it asked is not asked any more.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        await self._desk.close_questions()

    async def judge(self, request: ToolRequest, tool_use_id: str, cwd: str | None = None) -> Decision:
        """Decide by the policy as it is now, then by the user's hooks; a denial becomes an event, once for each call.

        Raises:
            RookeryError: the policy is gone, or decisions cannot be written down: the gate denies then.
        """
        self._services.audit.check()
        policy = await self._policy()
        began = time.perf_counter_ns()
        decision, now = await self._decided(request, tool_use_id, cwd, policy)
        objection: Objection | None = None
        if decision.effect is not Effect.DENY:
            self._cwds[tool_use_id] = cwd
            # Counted before anything is awaited, so that of two calls at once the second sees the first.
            self._history.admit(tool_use_id, ToolUse(request.tool, now, self._turn))
            objection = await self._object(request, tool_use_id, decision)
            if objection is not None:
                decision = tightened(decision, objection)
        if decision.input is not None:
            # The CLI asks again with the input that it was given: the question stays the one that was asked.
            self._rewritten[tool_use_id, replace(request, input=decision.input).digest] = request
        self._record(request, tool_use_id, policy, decision, began, objection)
        if decision.effect is Effect.DENY:
            await self._deny(request, tool_use_id, decision.because, decision.rule)
        return decision

    async def ask(
        self, request: ToolRequest, tool_use_id: str, decision: Decision, *, deferrable: bool = True
    ) -> Verdict:
        """Put the call to a person; a denial by them, or by time, is counted like any other."""
        began = time.perf_counter_ns()
        request = self._rewritten.get((tool_use_id, request.digest), request)
        # The CLI asks about one shell command after the other. Once one was put off the agent is about to sleep, and
        # what can sleep with it is asked then: each waiting for a person in its turn, N calls took N times as long.
        hot = not (self._put_off and self._may_sleep(request, deferrable))
        verdict = await self._desk.ask(request, tool_use_id, decision, self._turn, hot=hot)
        if verdict.defer and self._may_sleep(request, deferrable):
            self._put_off[tool_use_id] = request.tool
            return verdict
        if verdict.defer:
            verdict = await self._desk.set_aside(request, tool_use_id, ONE_AT_A_TIME)
        policy = await self._policy()
        answer = replace(decision, effect=verdict.effect, because=verdict.because)
        self._record(request, tool_use_id, policy, answer, began, None, verdict)
        if verdict.effect is Effect.ALLOW:
            # The policy may have been tightened while the person thought: no answer outlives that.
            now, _ = await self._decided(request, tool_use_id, self._cwds.get(tool_use_id), policy)
            if now.effect is Effect.DENY:
                self._record(request, tool_use_id, policy, now, began, None)
                answer, verdict = now, Verdict(Effect.DENY, now.because)
        if verdict.effect is Effect.DENY:
            await self._deny(request, tool_use_id, verdict.because, answer.rule)
        return verdict

    def _may_sleep(self, request: ToolRequest, deferrable: bool) -> bool:
        """Whether a call can be put off, beside those that are."""
        return deferrable and may_wait_together([*self._put_off.values(), request.tool])

    async def _decided(
        self, request: ToolRequest, tool_use_id: str, cwd: str | None, policy: Policy
    ) -> tuple[Decision, float]:
        """What the policy says, and when it was asked. Nothing else runs between the decision and the return."""
        children = await self._store.children_at_work(self._session.id) if spawns(request.tool) else 0
        now = self._clock.now().timestamp()

        def judge(links: LinkLookup) -> Decision:
            facts = Facts(
                cwd=cwd,
                links=links,
                history=self._history.before(tool_use_id),
                now=now,
                turn=self._turn,
                depth=len(self._session.parent_policies or ()),
                children=children,
            )
            return decide(request, policy, facts)

        return (judge({}) if self._files is None else await self._files.judged(judge)), now

    async def after(self, request: ToolRequest, tool_use_id: str, response: object) -> str | None:
        """Show the user's hooks what a call answered; why the turn must stop, if one objects."""
        event = PostToolUse(self._subject, request.tool, request.input, response, tool_use_id)
        objection = await self._services.hooks.objection(event)
        if objection is None:
            return None
        await self._deny(request, tool_use_id, objection.because, f"hook:{objection.hook}")
        return objection.because

    @property
    def _subject(self) -> Subject:
        session = self._session
        return Subject(session.id, session.principal, self._turn, session.labels)

    async def _object(self, request: ToolRequest, tool_use_id: str, decision: Decision) -> Objection | None:
        hooks = self._services.hooks
        if not hooks.any_for(PreToolUse):
            return None
        given = request.input if decision.input is None else decision.input
        return await hooks.objection(PreToolUse(self._subject, request.tool, given, tool_use_id))

    async def _policy(self) -> Policy:
        """The policy in force now; that a broken file left the last good one in force is said once."""
        effective = self._services.policies.of(self._session)
        if effective.fault is not None and effective.fault != self._fault:
            notice = {"text": f"policy: {effective.fault}", "level": "error"}
            await self._store.append_events(self._session.id, self._turn, [(EventKind.NOTICE, notice)])
        self._fault = effective.fault
        return effective.policy

    def _record(
        self,
        request: ToolRequest,
        tool_use_id: str,
        policy: Policy,
        decision: Decision,
        began: int,
        objection: Objection | None,
        verdict: Verdict | None = None,
    ) -> None:
        decider = Decider.HUMAN if verdict is not None else Decider.HOOK if objection is not None else Decider.RULE
        by = verdict.by if verdict is not None else objection.hook if objection is not None else None
        self._services.audit.add(
            DecisionRecord(
                id=self._clock.identifier("dec"),
                at=self._clock.now(),
                principal=self._session.principal,
                session_id=self._session.id,
                turn=self._turn,
                tool_use_id=bounded(tool_use_id, 200),
                tool=bounded(request.tool, 200),
                policy=policy.name,
                policy_digest=policy.digest,
                request_digest=request.digest,
                decision=decision.effect.value,
                rule=decision.rule,
                because=bounded(decision.because, 2_000),
                matched=tuple(dict.fromkeys(f"{match.layer}:{match.rule}" for match in decision.matched))[:200],
                rewritten=decision.input is not None,
                decider=decider,
                decided_by=by,
                latency_us=(time.perf_counter_ns() - began) // 1_000,
            )
        )

    async def _deny(self, request: ToolRequest, tool_use_id: str, because: str, rule: str | None) -> None:
        self._history.withdraw(tool_use_id)
        if self._history.was_denied(tool_use_id, before=self._turn):
            # Told and counted when its question expired, while the agent slept.
            return
        self._denied[tool_use_id] += 1
        if self._denied[tool_use_id] > 1:
            return
        data = {"id": tool_use_id, "tool": bounded(request.tool, 200), "because": because, "rule": rule}
        await self._store.append_events(self._session.id, self._turn, [(EventKind.DENIAL, data)])


def tightened(decision: Decision, objection: Objection) -> Decision:
    """A decision with an objection taken in: never wider than it was."""
    effect = decision.effect.meet(Effect.ASK if objection.ask else Effect.DENY)
    if effect is decision.effect:
        return decision
    return replace(decision, effect=effect, because=objection.because, rule=f"hook:{objection.hook}", ask_ttl_s=None)
