"""What the engine is asked, what it may know, and what it answers. Plain frozen data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

DEFAULT_WORKSPACE: Final = "/workspace"
DEFAULT_HOME: Final = "/home/agent"


class Effect(StrEnum):
    """What becomes of a call. ``strictness`` orders them: deny > ask > allow."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"

    strictness: int
    """0 for allow, 1 for ask, 2 for deny."""

    def meet(self, other: Effect) -> Effect:
        """The stricter of the two."""
        return self if self.strictness >= other.strictness else other


for _place, _effect in enumerate((Effect.ALLOW, Effect.ASK, Effect.DENY)):
    # An attribute, for the value of an enum is slow to get at and every part of a call is compared.
    _effect.strictness = _place


@dataclass(frozen=True)
class ToolRequest:
    """One tool call that an agent wants to make.

    Args:
        tool: the tool's name as the CLI gives it, for example ``Bash`` or ``mcp__github__create_issue``.
        input: the tool's arguments, as JSON values.
        role: the role in which the agent acts, if the session has one.
    """

    tool: str
    input: Mapping[str, Any]
    role: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical request: what an approval is bound to. Equal for equal calls only."""
        canonical = json.dumps(
            [self.tool, dict(self.input), self.role], sort_keys=True, separators=(",", ":"), default=repr
        )
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class ToolUse:
    """One admitted call of this session, for conditions on state. Calls in flight count like finished ones.

    Args:
        tool: its name.
        at: when it was admitted, in seconds on the clock of :attr:`Facts.now`.
        turn: the turn it belongs to.
    """

    tool: str
    at: float = 0.0
    turn: int = 0


LinkLookup = Callable[[str], str | None] | Mapping[str, str]
"""Absolute path inside the sandbox → the text of the symbolic link there, or None when it is no link."""


@dataclass(frozen=True)
class Facts:
    """Everything that the engine may know beside the request and the policy.

    Args:
        workspace: the workspace's path inside the sandbox.
        home: the agent's home inside the sandbox.
        cwd: where the call starts, as the CLI reports it; None means the workspace.
        links: the symbolic links as the sandbox sees them; by default none is known. A lookup must be bounded.
        history: calls admitted so far in this session, those in flight included, oldest first.
        now: present time in seconds, on the clock of the history.
        turn: number of the present turn.
        depth: how many ancestors the session has.
        children: how many sessions it has spawned that are still at work.
    """

    workspace: str = DEFAULT_WORKSPACE
    home: str = DEFAULT_HOME
    cwd: str | None = None
    links: LinkLookup = field(default_factory=dict)
    history: tuple[ToolUse, ...] = ()
    now: float = 0.0
    turn: int = 0
    depth: int = 0
    children: int = 0

    def link(self, path: str) -> str | None:
        """The link's text at an absolute path, or None."""
        return self.links(path) if callable(self.links) else self.links.get(path)


@dataclass(frozen=True)
class MatchedRule:
    """A rule that applied to a part of the request.

    Args:
        rule: the rule's id.
        effect: ``allow``, ``ask``, ``deny`` or ``rewrite``.
        layer: which layer it stands in.
        because: the rule's reason.
        part: index of the part (in :attr:`Decision.requests`) that it matched.
        file: the policy it comes from.
        line: its line there, counted from 1.
    """

    rule: str
    effect: str
    layer: str
    because: str
    part: int = 0
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class SubRequest:
    """One part of a request that was judged by itself: a segment of a script, a redirection's target, a host…

    Args:
        kind: ``tool``, ``command``, ``read``, ``write``, ``assignment``, ``directory``, ``host`` or ``script``.
        tool: the tool in whose name it was judged.
        text: what it is, for people: the command, the path, the host. At most 200 characters.
        effect: what all layers together say about it.
    """

    kind: str
    tool: str
    text: str
    effect: Effect


@dataclass(frozen=True)
class Decision:
    """The answer.

    Args:
        effect: allow, ask or deny.
        because: why, in a sentence that may be shown to the model: no host path, no secret.
        rule: id of the rule that decided; ids of built-in checks begin with ``rookery:``; None when no rule allowed
            the call, so that the default decided.
        matched: every rule that applied, in the order of layers and lines.
        input: the whole input to run with instead, if a rewrite applied; None leaves it as it was.
        requests: the parts that were judged, in their order.
        layer: the layer that decided, if a layer did.
        ask_ttl_s: of an ask by a rule: how many seconds the question waits before it expires to a denial.
    """

    effect: Effect
    because: str
    rule: str | None = None
    matched: tuple[MatchedRule, ...] = ()
    input: Mapping[str, Any] | None = None
    requests: tuple[SubRequest, ...] = ()
    layer: str | None = None
    ask_ttl_s: float | None = None
