"""Two gates in front of every tool call, both asking the policy engine, both closed unless it says allow.

The first is the PreToolUse hook, which sees every call; the second is ``can_use_tool``, which the CLI asks where its
own rules would prompt. A hook that raises falls through to the CLI's permission mode unless it is registered with
``on_failure="block"`` (DESIGN section 4), so it is, and every path here ends in a denial unless it proved an allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from claude_agent_sdk import (
    HookContext,
    HookInput,
    HookJSONOutput,
    HookMatcher,
    PermissionResultAllow,
    PermissionResultDeny,
    ToolPermissionContext,
)
from claude_agent_sdk.types import HookEvent

from policies import Decision, Effect, ToolRequest
from server.delegation import Admissions

log = structlog.get_logger(__name__)

MAX_CWDS: Final = 256
"""Calls whose directory is remembered between the two gates."""

HOOK_TIMEOUT_MARGIN_S: Final = 30.0
"""The CLI denies when a hook is late, so its timeout lies well above the longest wait inside the hook."""


@dataclass(frozen=True)
class Verdict:
    """What became of a question to a person: allowed, denied, or put off (``defer``) so that the agent may sleep."""

    effect: Effect
    because: str
    defer: bool = False
    by: str | None = None
    """Who answered, if somebody did."""


class PermissionAuthority(Protocol):
    """Who decides. The session implements it; every method may raise, which denies."""

    async def judge(self, request: ToolRequest, tool_use_id: str, cwd: str | None) -> Decision:
        """The policy's decision on a call, recorded.

        ``cwd`` is where the agent's shell stands, by the CLI's word; None when it did not say.
        """
        ...

    async def ask(self, request: ToolRequest, tool_use_id: str, decision: Decision, *, deferrable: bool) -> Verdict:
        """Put a call that the policy wants asked to a person, and wait while the question is hot.

        With ``deferrable`` the answer may be to put it off, of one call at a time.
        """
        ...

    async def after(self, request: ToolRequest, tool_use_id: str, response: object) -> str | None:
        """Look at what a call answered; why the turn must stop, if it must."""
        ...


class PermissionGate:
    """The callbacks that the SDK calls for one agent.

    Args:
        hot_s: longest wait of ``authority.ask`` in seconds.
        after: whether results are shown to the authority, which costs each call a round trip more.

    Attributes:
        authority: decides; None, as for a warm agent that has no session yet, denies everything.
        admissions: calls of Rookery's own tools that were allowed.
    """

    def __init__(self, *, hot_s: float, after: bool = False) -> None:
        self.authority: PermissionAuthority | None = None
        self.admissions = Admissions()
        self._cwds: dict[str, str] = {}
        self._after = after
        self._timeout_s = hot_s + HOOK_TIMEOUT_MARGIN_S

    def hooks(self) -> dict[HookEvent, list[HookMatcher]]:
        """The hook table for ``ClaudeAgentOptions``: one matcher for every tool, blocking on failure."""
        before = HookMatcher(hooks=[self.pre_tool_use], timeout=self._timeout_s, on_failure="block")
        if not self._after:
            return {"PreToolUse": [before]}
        after = HookMatcher(hooks=[self.post_tool_use], timeout=self._timeout_s, on_failure="block")
        return {"PreToolUse": [before], "PostToolUse": [after]}

    async def pre_tool_use(
        self, hook_input: HookInput, tool_use_id: str | None, context: HookContext
    ) -> HookJSONOutput:
        """First gate: every tool call."""
        given: Mapping[str, Any] = dict(hook_input)
        self._remember(given.get("tool_use_id") or tool_use_id, given.get("cwd"))
        verdict, updated = await self._closed(
            given.get("tool_name"), given.get("tool_input"), given.get("tool_use_id") or tool_use_id, deferrable=True
        )
        answer: dict[str, Any] = {"hookEventName": "PreToolUse", "permissionDecisionReason": verdict.because}
        if verdict.defer:
            answer["permissionDecision"] = "defer"
        elif verdict.effect is Effect.ALLOW:
            answer["permissionDecision"] = "allow"
            if updated is not None:
                answer["updatedInput"] = dict(updated)
        else:
            answer["permissionDecision"] = "deny"
        return {"hookSpecificOutput": answer}  # type: ignore[typeddict-item]  # the SDK's union of hook outputs

    async def post_tool_use(
        self, hook_input: HookInput, tool_use_id: str | None, context: HookContext
    ) -> HookJSONOutput:
        """After a call: the turn stops if the authority objects to what it answered, or cannot tell."""
        given: Mapping[str, Any] = dict(hook_input)
        try:
            if self.authority is None:
                because: str | None = "No session has taken this agent yet."
            else:
                request = ToolRequest(tool=str(given["tool_name"]), input=dict(given["tool_input"]))
                call = str(given.get("tool_use_id") or tool_use_id)
                because = await self.authority.after(request, call, given.get("tool_response"))
        except Exception:
            log.exception("a result could not be judged; the turn is stopped", tool=str(given.get("tool_name"))[:80])
            because = "Rookery could not judge what this call answered, so the turn is stopped."
        return {} if because is None else {"continue_": False, "stopReason": because}

    async def can_use_tool(
        self, tool: str, tool_input: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResultAllow | PermissionResultDeny:
        """Second gate: what the CLI itself would have asked. The engine is asked afresh; nothing is remembered."""
        verdict, updated = await self._closed(tool, tool_input, context.tool_use_id, deferrable=False)
        if verdict.effect is Effect.ALLOW and not verdict.defer:
            return PermissionResultAllow(updated_input=dict(updated) if updated is not None else tool_input)
        return PermissionResultDeny(message=verdict.because)

    def _remember(self, tool_use_id: object, cwd: object) -> None:
        """The first gate is told where the shell stands, the second is not."""
        if isinstance(tool_use_id, str) and isinstance(cwd, str):
            self._cwds[tool_use_id] = cwd
            while len(self._cwds) > MAX_CWDS:
                del self._cwds[next(iter(self._cwds))]

    async def _closed(
        self, tool: object, tool_input: object, tool_use_id: object, *, deferrable: bool
    ) -> tuple[Verdict, Mapping[str, Any] | None]:
        """Judge a call; any failure whatever is a denial (row R23)."""
        try:
            authority = self.authority
            if authority is None:
                return Verdict(Effect.DENY, "No session has taken this agent yet."), None
            if not isinstance(tool, str) or not isinstance(tool_input, dict) or not isinstance(tool_use_id, str):
                return Verdict(Effect.DENY, "The tool call was malformed."), None
            request = ToolRequest(tool=tool, input=tool_input)
            decision = await authority.judge(request, tool_use_id, self._cwds.get(tool_use_id))
            verdict = Verdict(decision.effect, decision.because)
            if decision.effect is Effect.ASK:
                verdict = await authority.ask(request, tool_use_id, decision, deferrable=deferrable)
            if verdict.effect is Effect.ALLOW and not verdict.defer:
                self.admissions.admit(tool, tool_input if decision.input is None else decision.input, tool_use_id)
            return verdict, decision.input
        except Exception:
            log.exception("permission decision failed; the call is denied", tool=str(tool)[:80])
            return Verdict(Effect.DENY, "Rookery could not decide on this call, so it is denied."), None
