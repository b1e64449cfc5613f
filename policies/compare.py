"""Policies held against calls and against each other: table tests, simulation of a record, and a diff by meaning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from policies.calls import parse_call
from policies.engine import decide
from policies.errors import PolicyError
from policies.layer import Limits
from policies.policy import Policy
from policies.source import read_yaml
from policies.types import Effect, Facts, ToolRequest

MAX_CASES = 5000


@dataclass(frozen=True)
class Case:
    """One row of a table: a call and what must become of it.

    Args:
        request: the call.
        expect: the effect it must have.
        rule: the rule that must decide, if given.
        line: its line in the table.
        text: the call as written.
    """

    request: ToolRequest
    expect: Effect
    rule: str | None
    line: int
    text: str


@dataclass(frozen=True)
class CaseResult:
    """What became of a case."""

    case: Case
    effect: Effect
    rule: str | None
    because: str

    @property
    def passed(self) -> bool:
        """Whether the effect, and the rule if one was given, are as expected."""
        return self.effect is self.case.expect and (self.case.rule is None or self.case.rule == self.rule)


def read_table(text: str, file: str) -> tuple[Case, ...]:
    """Read a table of cases: a YAML list of ``{call: "Bash(ls)", expect: allow, rule: …, role: …}``; instead of
    ``call`` a row may have ``tool`` and ``input``.

    Raises:
        PolicyError: with the line of the fault.
    """
    data, lines = read_yaml(text, file)
    if not isinstance(data, list) or len(data) > MAX_CASES:
        raise PolicyError("the table is no list", file=file, line=1, remedy="write - call: Bash(ls) and expect: allow")
    return tuple(_case(row, lines.of((place,)), file) for place, row in enumerate(data))


def _case(row: Any, line: int, file: str) -> Case:
    def fault(message: str, remedy: str) -> PolicyError:
        return PolicyError(message, file=file, line=line, remedy=remedy)

    if not isinstance(row, dict):
        raise fault("the row is no mapping", "write call: and expect:")
    for key in row:
        if key not in ("call", "tool", "input", "expect", "rule", "role"):
            raise fault(f"unknown key {key!r}", "known keys: call, tool, input, expect, rule, role")
    expect, role, rule = row.get("expect"), row.get("role"), row.get("rule")
    if expect not in ("allow", "ask", "deny"):
        raise fault("expect is missing or unknown", "write allow, ask or deny")
    if not isinstance(role, str | None) or not isinstance(rule, str | None):
        raise fault("role and rule are texts", "quote them")
    call, tool, given = row.get("call"), row.get("tool"), row.get("input", {})
    if isinstance(call, str) and tool is None:
        try:
            request = parse_call(call, role)
        except ValueError as error:
            raise fault(str(error), "or give tool and input") from None
    elif isinstance(tool, str) and call is None and isinstance(given, dict):
        request = ToolRequest(tool, given, role)
    else:
        raise fault("the row has no call", "write call: Bash(ls), or tool: and input:")
    return Case(request, Effect(expect), rule, line, call if isinstance(call, str) else str(tool))


def run_cases(cases: Iterable[Case], policy: Policy, facts: Facts | None = None) -> tuple[CaseResult, ...]:
    """Decide every case."""
    results = []
    for case in cases:
        decision = decide(case.request, policy, facts or Facts())
        results.append(CaseResult(case, decision.effect, decision.rule, decision.because))
    return tuple(results)


@dataclass(frozen=True)
class Change:
    """A call that two policies decide differently."""

    request: ToolRequest
    before: Effect
    after: Effect
    rule: str | None
    because: str

    @property
    def tightened(self) -> bool:
        """Whether the new decision is the stricter."""
        return self.after.strictness > self.before.strictness


def simulate(
    calls: Iterable[tuple[ToolRequest, Facts]] | Iterable[ToolRequest], before: Policy, after: Policy
) -> tuple[Change, ...]:
    """Replay recorded calls under two policies; what changed, in their order."""
    changes = []
    for entry in calls:
        request, facts = entry if isinstance(entry, tuple) else (entry, Facts())
        old, new = decide(request, before, facts), decide(request, after, facts)
        if old.effect is not new.effect:
            changes.append(Change(request, old.effect, new.effect, new.rule, new.because))
    return tuple(changes)


@dataclass(frozen=True)
class PolicyDiff:
    """How two policies differ.

    Args:
        changes: the examples of both policies that are decided differently.
        rules: ``+ id``, ``- id`` and ``~ id`` of rules that came, went or changed.
        tools: the same for offered tools.
        network: the same for allowed hosts.
        limits: ``name: old -> new``.
    """

    changes: tuple[Change, ...]
    rules: tuple[str, ...]
    tools: tuple[str, ...]
    network: tuple[str, ...]
    limits: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changes or self.rules or self.tools or self.network or self.limits)


def diff(before: Policy, after: Policy) -> PolicyDiff:
    """The difference of two policies: of their rules, and of what they decide about each other's examples."""
    examples = dict.fromkeys(text for policy in (before, after) for layer in policy.layers for text in layer.examples)
    old = {rule.id: rule for layer in before.layers for rule in layer.rules}
    new = {rule.id: rule for layer in after.layers for rule in layer.rules}
    changed = [
        f"~ {name}"
        for name in old.keys() & new.keys()
        if any(getattr(old[name], field) != getattr(new[name], field) for field in _MEANING)
    ]
    limits = [
        f"{name}: {getattr(before.limits, name)} -> {getattr(after.limits, name)}"
        for name in Limits.__dataclass_fields__
        if getattr(before.limits, name) != getattr(after.limits, name)
    ]
    return PolicyDiff(
        simulate([parse_call(text) for text in examples], before, after),
        tuple(sorted([*_came_and_went(old, new), *changed], key=lambda line: line[2:])),
        tuple(_came_and_went(before.offered_tools(), after.offered_tools())),
        tuple(_came_and_went(before.network, after.network)),
        tuple(limits),
    )


_MEANING = ("effect", "tools", "roles", "when", "rewrite", "ask_ttl_s", "advisory")


def _came_and_went(before: Iterable[str], after: Iterable[str]) -> list[str]:
    old, new = set(before), set(after)
    return [f"- {name}" for name in sorted(old - new)] + [f"+ {name}" for name in sorted(new - old)]
