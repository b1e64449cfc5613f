"""One layer of a policy: its rules with an index, and what it says about one part of a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from policies.catalogue import TOOLS, canonical_name
from policies.hosts import HostRules
from policies.matching import Matcher
from policies.parts import Part, PartKind
from policies.path_sets import CompiledPaths, compile_paths
from policies.paths import folded
from policies.rules import READ_TOOLS, WRITE_TOOLS, Rule, ToolNames
from policies.types import Effect, Facts

LAYER_NAMES: Final = ("organisation", "profile", "parent", "session")
"""The layers in the order in which they are asked."""

SPAWNING_TOOLS: Final = frozenset({"spawn_agent", "fork_session"})
"""Tools (of whatever MCP server is handed to an agent) that make a new session: depth and children bound them."""


def spawns(tool: str) -> bool:
    """Whether a tool makes a new session."""
    return tool.startswith("mcp__") and tool.rsplit("__", 1)[-1] in SPAWNING_TOOLS


@dataclass(frozen=True)
class Limits:
    """Upper bounds of a session; None bounds nothing. ``wall`` in seconds, ``usd`` in US dollars."""

    usd: float | None = None
    turns: int | None = None
    wall: float | None = None
    depth: int | None = None
    children: int | None = None
    tool_calls_per_min: int | None = None

    def meet(self, other: Limits) -> Limits:
        """The smaller of each."""

        def least(one: Any, two: Any) -> Any:
            return two if one is None else one if two is None else min(one, two)

        return Limits(*(least(getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class PartVerdict:
    """What one layer says about one part.

    Args:
        effect: its effect; None when the part needs no allow and nothing forbids it.
        rule: the rule that decided, if a rule did.
        builtin: id of the built-in check that decided, if one did.
        because: why.
        matched: all rules that applied, in the order of the file.
    """

    effect: Effect | None
    rule: Rule | None
    builtin: str | None
    because: str
    matched: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A compiled policy document in its place.

    Args:
        name: one of the layer names, or a text that begins with one (an ancestor's layers are told apart so).
        policy: the policy's name.
        rules: its rules, an extended preset's first.
        default: what holds when no rule matches: deny or ask.
        unprovable: what becomes of a script that cannot be proved: deny or ask.
        limits: its limits.
        roles: role → the tools that it may use at most.
        models: globs of model names that may be used; empty means all.
        network: its network rules.
        source: the canonical text that it was compiled from, for the digest.
        examples: the calls that its rules name as examples.
        role: the role in which this layer is judged, whatever a request says; None leaves it to the request.
    """

    name: str
    policy: str
    rules: tuple[Rule, ...]
    default: Effect = Effect.DENY
    unprovable: Effect = Effect.DENY
    limits: Limits = field(default_factory=Limits)
    roles: Mapping[str, ToolNames] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    network: HostRules = field(default_factory=HostRules)
    source: str = ""
    examples: tuple[str, ...] = ()
    role: str | None = None

    @cached_property
    def _index(self) -> _Index:
        return _Index(self.rules)

    def guards_scripts(self, matcher: Matcher) -> bool:
        """Whether a rule restricts what Bash runs, so that what is not proved could evade it."""
        return any(matcher.applies(rule) for rule in self._index.guards)

    def call_fault(self, part: Part, matcher: Matcher) -> tuple[str, str] | None:
        """The built-in check, with its reason, that denies a whole call in this layer, if one does."""
        role, facts = matcher.role, matcher.facts
        if role is not None and self.roles:
            allowed = self.roles.get(role)
            if allowed is None:
                return "rookery:role", f"The role {role[:60]} is not known to the policy {self.policy}."
            if not allowed.covers(part.called):
                return "rookery:role", f"The role {role[:60]} may not use the tool {part.called[:60]}."
        return self._limit_fault(part.called, facts)

    def _limit_fault(self, tool: str, facts: Facts) -> tuple[str, str] | None:
        limits = self.limits
        if limits.tool_calls_per_min is not None:
            recent = sum(1 for use in facts.history if facts.now - use.at < 60.0)
            if recent >= limits.tool_calls_per_min:
                return (
                    "rookery:rate",
                    f"More than {limits.tool_calls_per_min} tool calls within a minute: wait before the next.",
                )
        if spawns(tool):
            if limits.depth is not None and facts.depth >= limits.depth:
                return "rookery:depth", f"Agents may be nested {limits.depth} deep at most: do the work yourself."
            if limits.children is not None and facts.children >= limits.children:
                return "rookery:children", f"Only {limits.children} agents may work at once: wait for one to end."
        return None

    def judge(self, part: Part, matcher: Matcher) -> PartVerdict:
        """What this layer says about one part: deny over ask over allow over the default."""
        denies: list[Rule] = []
        asks: list[Rule] = []
        allows: list[Rule] = []
        grants_asks: list[Rule] = []
        for rule in self._index.candidates(part, matcher.facts):
            if rule.effect is Effect.ALLOW:
                if matcher.proves(rule, part):
                    allows.append(rule)
            elif rule.effect is None:
                continue
            elif matcher.possible(rule, part):
                (denies if rule.effect is Effect.DENY else asks).append(rule)
                if rule.effect is Effect.ASK and matcher.proves(rule, part):
                    grants_asks.append(rule)
        matched = (*denies, *asks, *allows)
        if len(matched) > 1:
            matched = tuple(sorted(matched, key=self._index.position))
        if denies:
            return PartVerdict(Effect.DENY, denies[0], None, _reason(denies[0], part), matched)
        if part.kind is PartKind.TOOL and part.called == "Bash":
            return self._judge_bash_call(asks, matched, matcher)
        if part.certain and (part.kind is PartKind.SCRIPT or part.opaque) and self.guards_scripts(matcher):
            narrow = [rule for rule in (*allows, *grants_asks) if rule.when.on_call]
            if not narrow:
                return self._unproved(part, matched, matcher)
        if part.kind is PartKind.SCRIPT and not allows and not grants_asks:
            return self._unproved(part, matched, matcher)
        if not part.needs_allow:
            return _verdict_of(asks[0], part, matched) if asks else PartVerdict(None, None, None, "", matched)
        if not allows and not grants_asks:
            # Of a script that is not proved the knob decides, also about what can be seen of it: a person is shown all.
            doubted = part.unproven and self.unprovable is Effect.ASK
            return self._unproved(part, matched, matcher) if doubted else self._by_default(part, matched)
        decider = asks[0] if asks else allows[0]
        return _verdict_of(decider, part, matched)

    def _judge_bash_call(self, asks: list[Rule], matched: tuple[Rule, ...], matcher: Matcher) -> PartVerdict:
        """The call of Bash as such: it takes a rule that speaks of Bash at all; its parts take their own."""
        if asks:
            return PartVerdict(Effect.ASK, asks[0], None, asks[0].because, matched)
        if self.speaks_of_bash(matcher):
            return PartVerdict(None, None, None, "", matched)
        because = f"No rule of the policy {self.policy} allows Bash."
        return PartVerdict(self.default, None, None, because, matched)

    def speaks_of_bash(self, matcher: Matcher) -> bool:
        """Whether some rule for this role can allow or ask for a shell command."""
        return any(matcher.applies(rule) for rule in self._index.bash_grants)

    def _unproved(self, part: Part, matched: tuple[Rule, ...], matcher: Matcher) -> PartVerdict:
        what = part.doubts[0] if part.doubts else part.exact_only or _UNKNOWN.get(part.kind, "unknown arguments")
        because = (
            f"It cannot be proved what this command does ({what}): write it with plain words, one program at a time, "
            "or put it into a script file."
        )
        effect = self.unprovable if self.speaks_of_bash(matcher) else Effect.DENY
        return PartVerdict(effect, None, "rookery:unprovable", because, matched)

    def _by_default(self, part: Part, matched: tuple[Rule, ...]) -> PartVerdict:
        because = f"No rule of the policy {self.policy} allows {_described(part)}."
        if part.exact_only is not None:
            because += f" ({part.exact_only}: only a rule with exactly these words may allow it.)"
        return PartVerdict(self.default, None, None, because, matched)

    def rewrites(self, parts: Iterable[Part], matcher: Matcher) -> Iterator[tuple[Rule, int]]:
        """The rewrite rules that apply to a request, each once with the first part that it matches."""
        for rule in self._index.rewrites:
            for place, part in enumerate(parts):
                if matcher.possible(rule, part):
                    yield rule, place
                    break

    def could_allow(self, tool: str) -> bool:
        """Whether some call of a tool, in some role and state, could be allowed or asked for."""
        if self.role is not None and self.roles:
            allowed = self.roles.get(self.role)
            if allowed is None or not allowed.covers(tool):
                return False
        if any(
            rule.effect is Effect.DENY
            and rule.tools.covers(tool)
            and not rule.when.on_call
            and not rule.when.state
            and (not rule.roles or self.role in rule.roles)
            for rule in self.rules
        ):
            return False
        return self.default is Effect.ASK or any(
            rule.proves and rule.tools.covers(tool) and (not rule.roles or self.role is None or self.role in rule.roles)
            for rule in self.rules
        )


def _reason(rule: Rule, part: Part) -> str:
    because = rule.because or f"The rule {rule.id} denies {_described(part)}."
    if rule.when.paths and any(claim.deep for claim in part.claims):
        because += " (It would read everything below a directory: name the files, or narrow the search.)"
    return because


def _verdict_of(rule: Rule, part: Part, matched: tuple[Rule, ...]) -> PartVerdict:
    verb = "asks about" if rule.effect is Effect.ASK else "allows"
    return PartVerdict(
        rule.effect, rule, None, rule.because or f"The rule {rule.id} {verb} {_described(part)}.", matched
    )


_UNKNOWN: Final = {PartKind.ASSIGNMENT: "a variable that chooses which programs run"}


_WORDS_FOR: Final[Mapping[PartKind, str]] = {
    PartKind.TOOL: "{}",
    PartKind.COMMAND: "the command {}",
    PartKind.WRITE: "writing to {}",
    PartKind.READ: "reading from {}",
    PartKind.ASSIGNMENT: "setting the variable {}",
    PartKind.DIRECTORY: "the change of directory {}",
    PartKind.SCRIPT: "this script",
}


def _described(part: Part) -> str:
    """A part in words."""
    return _WORDS_FOR[part.kind].format(part.variables[0] if part.kind is PartKind.ASSIGNMENT else part.text)


@dataclass(frozen=True)
class _Candidates:
    """Rules that can match one kind of part: those to be asked always, and denials that need a path of theirs."""

    plain: tuple[Rule, ...]
    guards: tuple[Rule, ...]


def _candidates(rules: Iterable[Rule]) -> _Candidates:
    found = tuple(rules)
    return _Candidates(
        tuple(rule for rule in found if rule.effect is Effect.ALLOW or not rule.when.paths),
        tuple(rule for rule in found if rule.effect is not Effect.ALLOW and rule.when.paths),
    )


class _Index:
    """Rules by what they can speak of, so that a call looks at few of many."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._positions = {id(rule): place for place, rule in enumerate(rules)}
        self.rewrites = tuple(rule for rule in rules if rule.effect is None)
        judging = [rule for rule in rules if rule.effect is not None]
        bash = [rule for rule in judging if rule.tools.covers("Bash")]
        self.guards = tuple(
            rule
            for rule in bash
            if rule.effect is not Effect.ALLOW
            and not rule.advisory
            and (rule.when.argv or rule.when.paths or rule.when.cwd or rule.when.env or rule.when.domains)
        )
        self.bash_grants = tuple(rule for rule in bash if rule.proves)
        self._patterns = tuple(
            dict.fromkeys(pattern for rule in judging if rule.effect is not Effect.ALLOW for pattern in rule.when.paths)
        )
        self._compiled: dict[tuple[str, str], CompiledPaths] = {}
        self._by_tool = {
            name: _candidates(rule for rule in judging if rule.tools.covers(name) or rule.guards_files_from(name))
            for name in TOOLS
        }
        self._of_servers = _candidates(
            rule
            for rule in judging
            if rule.tools.globs or rule.tools.every or any(name.startswith("mcp__") for name in rule.tools.exact)
        )
        # A rule on words can match a command only.
        without_words = [rule for rule in bash if not rule.when.argv]
        self._by_tool["Bash"] = _candidates(without_words)
        self._reads = _candidates(_of_tools(judging, READ_TOOLS, without_words))
        self._writes = _candidates(_of_tools(judging, WRITE_TOOLS, without_words))
        # A program's words may be files that a rule for file tools denies.
        files = [rule for rule in judging if rule.effect is not Effect.ALLOW and rule.when.paths and rule not in bash]
        self._commands = _candidates((*without_words, *files))
        self._by_program: dict[str, list[Rule]] = {}
        for rule in bash:
            for program in {folded(form[0]) for form in rule.when.argv}:
                self._by_program.setdefault(program, []).append(rule)

    def position(self, rule: Rule) -> int:
        """Where a rule stands in its layer."""
        return self._positions[id(rule)]

    def candidates(self, part: Part, facts: Facts) -> Iterable[Rule]:
        """Every rule that can match a part; one that cannot may be among them, none twice."""
        if part.kind in (PartKind.COMMAND, PartKind.DIRECTORY):
            found = self._commands
            programs = (*part.names, folded(part.words[0].text), "*")
            if not self._by_program.keys().isdisjoint(programs):
                named = (rule for name in programs for rule in self._by_program.get(name, ()))
                plain = tuple({id(rule): rule for rule in (*found.plain, *named)}.values())
                found = _Candidates(plain, found.guards)
        elif part.kind is PartKind.READ:
            found = self._reads
        elif part.kind is PartKind.WRITE:
            found = self._writes
        else:
            found = self._by_tool.get(part.tool, self._of_servers)
        if found.guards and self._touches(part, facts):
            return (*found.plain, *found.guards)
        return found.plain

    def _touches(self, part: Part, facts: Facts) -> bool:
        """Whether any denial's path at all may be named by a part: one look instead of one for each rule."""
        if not part.claims:
            return False
        place = (facts.workspace, facts.home)
        compiled = self._compiled.get(place)
        if compiled is None:
            compiled = self._compiled[place] = compile_paths(self._patterns, *place)
        for claim in part.claims:
            if claim.glob is not None:
                if compiled.meets(claim.glob):
                    return True
            elif compiled.reaches(claim.forms, deep=claim.deep, whole=claim.whole):
                return True
        return False


def _of_tools(rules: Iterable[Rule], tools: frozenset[str], besides: list[Rule]) -> list[Rule]:
    """The rules that speak of some of the tools, and ``besides``, none twice."""
    found = [rule for rule in rules if not rule.when.argv and any(rule.tools.covers(name) for name in tools)]
    return list({id(rule): rule for rule in (*found, *besides)}.values())


def tool_names(names: Iterable[str]) -> ToolNames:
    """Compile a list of tool names and patterns that were already checked."""
    exact: set[str] = set()
    globs: list[str] = []
    every = False
    for name in names:
        if name == "*":
            every = True
        elif name.startswith("mcp__") and name.count("__") == 1:
            globs.append(f"{name}__*")
        elif "*" in name or "?" in name:
            globs.append(name)
        else:
            exact.add(canonical_name(name))
    return ToolNames(frozenset(exact), tuple(globs), every)
