"""Why a decision came out as it did: every part, every layer, every rule, and why a rule did not apply.

The decision shown is the evaluation's own; the trace only adds what the rules that did not match were lacking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.engine import evaluate
from policies.layer import Layer, PartVerdict
from policies.matching import Matcher
from policies.parts import Part
from policies.policy import Policy
from policies.rules import Rule
from policies.types import Decision, Facts, ToolRequest


@dataclass(frozen=True)
class RuleTrace:
    """One rule held against one part.

    Args:
        rule: its id.
        effect: ``allow``, ``ask``, ``deny`` or ``rewrite``.
        matched: whether it applied.
        why: its reason if it applied, else what was lacking.
        file: the policy it comes from.
        line: its line there.
    """

    rule: str
    effect: str
    matched: bool
    why: str
    file: str | None
    line: int | None


@dataclass(frozen=True)
class LayerTrace:
    """What one layer said about one part; ``effect`` is None where the part needs no rule."""

    layer: str
    policy: str
    effect: str | None
    decided_by: str | None
    because: str
    rules: tuple[RuleTrace, ...]


@dataclass(frozen=True)
class PartTrace:
    """One part with what each layer said about it."""

    kind: str
    tool: str
    text: str
    layers: tuple[LayerTrace, ...]


@dataclass(frozen=True)
class Explanation:
    """A decision and how it came about. ``parts`` is empty when a built-in check decided before any rule."""

    decision: Decision
    parts: tuple[PartTrace, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for ``explain_policy`` and ``rookery policy explain --json``."""
        decision = self.decision
        return {
            "decision": decision.effect.value,
            "rule": decision.rule,
            "layer": decision.layer,
            "because": decision.because,
            "input": None if decision.input is None else dict(decision.input),
            "matched": [vars_of(rule) for rule in decision.matched],
            "parts": [
                {
                    "kind": part.kind,
                    "tool": part.tool,
                    "text": part.text,
                    "layers": [
                        {**vars_of(layer), "rules": [vars_of(rule) for rule in layer.rules]} for layer in part.layers
                    ],
                }
                for part in self.parts
            ],
        }

    def as_text(self, *, every_rule: bool = False) -> str:
        """A tree for people; ``every_rule`` also lists the rules that did not match."""
        decision = self.decision
        lines = [f"{decision.effect.value.upper()}: {decision.because}"]
        lines.append(f"decided by {decision.rule or 'the default'} in the layer {decision.layer or 'rookery'}")
        if decision.input is not None:
            lines.append(f"input becomes {dict(decision.input)!r}"[:500])
        for part in self.parts:
            lines.append(f"- {part.kind}: {part.text}")
            for layer in part.layers:
                decider = layer.decided_by or ("no rule matches" if layer.effect else "needs no rule")
                lines.append(f"    {layer.layer} ({layer.policy}): {layer.effect or 'nothing to say'} [{decider}]")
                for rule in layer.rules:
                    if rule.matched or every_rule:
                        mark = "+" if rule.matched else "-"
                        place = f"{rule.file}:{rule.line}" if rule.line else rule.file
                        lines.append(f"      {mark} {rule.effect} {rule.rule} ({place}): {rule.why}")
        return "\n".join(lines)


def vars_of(value: object) -> dict[str, Any]:
    """The fields of a flat frozen record."""
    fields: Mapping[str, Any] = vars(value)
    return {name: item for name, item in fields.items() if name != "rules"}


def explain(request: ToolRequest, policy: Policy, facts: Facts) -> Explanation:
    """The decision that :func:`policies.decide` gives, with its reasons. Arguments as there."""
    evaluation = evaluate(request, policy, facts)
    matcher = Matcher(facts, request.role)
    return Explanation(
        evaluation.decision,
        tuple(
            PartTrace(
                part.kind.value,
                part.tool,
                part.text,
                tuple(_layer(layer, verdicts[place], part, matcher) for layer, verdicts in evaluation.verdicts),
            )
            for place, part in enumerate(evaluation.parts)
        ),
    )


def _layer(layer: Layer, verdict: PartVerdict, part: Part, matcher: Matcher) -> LayerTrace:
    matched = set(map(id, verdict.matched))
    return LayerTrace(
        layer.name,
        layer.policy,
        None if verdict.effect is None else verdict.effect.value,
        verdict.rule.id if verdict.rule is not None else verdict.builtin,
        verdict.because,
        tuple(_rule(rule, part, matcher, id(rule) in matched) for rule in layer.rules),
    )


def _rule(rule: Rule, part: Part, matcher: Matcher, matched: bool) -> RuleTrace:
    if rule.effect is None:
        matched = matcher.possible(rule, part)
    effect = "rewrite" if rule.effect is None else rule.effect.value
    why = rule.because if matched else matcher.lacking(rule, part)
    return RuleTrace(rule.id, effect, matched, why, rule.file, rule.line)
