"""Rules compiled from their text: the tools, the conditions, the effect."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Final, Literal

from policies.catalogue import canonical_name
from policies.globs import PathPattern
from policies.types import Effect, Facts

MAX_FORMS: Final = 256
WRITE_TOOLS: Final = frozenset({"Write", "Edit", "MultiEdit", "NotebookEdit"})
READ_TOOLS: Final = frozenset({"Read", "Grep"})
Within = Literal["session", "turn"] | float


@dataclass(frozen=True)
class ToolNames:
    """Which tools a rule speaks of.

    Args:
        exact: tools by their canonical name.
        globs: patterns of MCP tool names.
        every: all tools whatever (denials only).
    """

    exact: frozenset[str]
    globs: tuple[str, ...] = ()
    every: bool = False

    def covers(self, tool: str) -> bool:
        """Whether a tool is meant."""
        if tool in self.exact or self.every:
            return True
        return bool(self.globs) and any(fnmatchcase(tool, glob) for glob in self.globs)

    def may_mean(self, tool: str) -> bool:
        """Whether a tool may be meant by a denial: of a server's tools in whatever case (row R18)."""
        if self.covers(tool):
            return True
        name = tool.casefold()
        return tool.startswith("mcp__") and (
            any(name == one.casefold() for one in self.exact)
            or any(fnmatchcase(name, glob.casefold()) for glob in self.globs)
        )


@dataclass(frozen=True)
class UsedTool:
    """A condition on what was used before: ``at_least`` times, within the session, the turn, or so many seconds."""

    tools: ToolNames
    within: Within = "session"
    at_least: int = 1

    def holds(self, facts: Facts) -> bool:
        """Whether the history says so; calls in flight are in it."""
        count = 0
        for use in facts.history:
            recent = (
                use.turn == facts.turn
                if self.within == "turn"
                else self.within == "session" or facts.now - use.at <= self.within
            )
            count += recent and self.tools.covers(canonical_name(use.tool))
        return count >= self.at_least


@dataclass(frozen=True)
class When:
    """The conditions of a rule; an empty one always holds."""

    argv: tuple[tuple[str, ...], ...] = ()
    exact: bool = False
    paths: tuple[PathPattern, ...] = ()
    access: Literal["read", "write"] | None = None
    cwd: tuple[PathPattern, ...] = ()
    env: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    input: tuple[tuple[str, tuple[str | bool | int, ...]], ...] = ()
    state: tuple[UsedTool, ...] = ()

    @cached_property
    def on_call(self) -> bool:
        """Whether any condition looks at the call itself."""
        return bool(self.argv or self.paths or self.cwd or self.env or self.domains or self.input)


@dataclass(frozen=True)
class Rule:
    """A compiled rule.

    Args:
        id: unique in its policy.
        effect: its effect, or None for a rewrite.
        tools: the tools it speaks of.
        roles: roles it is limited to; empty means all.
        when: its conditions.
        because: its reason.
        rewrite: fields that a rewrite sets.
        ask_ttl_s: how long a question waits, in seconds.
        advisory: it holds where it can be seen; a script that cannot be proved does not fail for it.
        file: the policy it comes from.
        line: its line there.
    """

    id: str
    effect: Effect | None
    tools: ToolNames
    roles: frozenset[str] = frozenset()
    when: When = field(default_factory=When)
    because: str = ""
    rewrite: tuple[tuple[str, Any], ...] = ()
    ask_ttl_s: float | None = None
    advisory: bool = False
    file: str | None = None
    line: int | None = None

    @property
    def proves(self) -> bool:
        """Whether it must be proved: allows; and asks too, for an ask lifts the default denial."""
        return self.effect in (Effect.ALLOW, Effect.ASK)

    def guards_files_from(self, tool: str) -> bool:
        """Whether it keeps files from a tool that it does not name.

        Who denies a file to one tool means the file: no other tool that reads, or writes, may reach it.
        """
        return (
            self.effect is not Effect.ALLOW
            and bool(self.when.paths)
            and any(tool in kin and not kin.isdisjoint(self.tools.exact) for kin in (READ_TOOLS, WRITE_TOOLS))
        )


def token_forms(positions: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """All word sequences that a list of alternatives stands for; an alternative may hold several words.

    Raises:
        ValueError: there are too many.
    """
    split = [[tuple(alternative.split()) for alternative in position] for position in positions]
    total = 1
    for position in split:
        total *= len(position)
    if total > MAX_FORMS:
        raise ValueError(f"argv stands for more than {MAX_FORMS} commands: split the rule")
    return tuple(tuple(itertools.chain.from_iterable(choice)) for choice in itertools.product(*split))
