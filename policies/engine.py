"""``decide``: a pure function from a request, a policy and facts to a decision.

The same evaluation answers ``decide`` and ``explain``, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from policies.catalogue import ALWAYS_ALLOWED, NEVER_OFFERED, canonical_name
from policies.decompose import parts_of
from policies.layer import Layer, PartVerdict
from policies.matching import Matcher
from policies.parts import Part, PartKind, RefusedError
from policies.policy import Policy
from policies.rewrite import apply_settings
from policies.rules import Rule
from policies.types import Decision, Effect, Facts, MatchedRule, SubRequest, ToolRequest

_FORCED: Final = "dangerouslyDisableSandbox"
_NETWORK_TOOLS: Final = frozenset({"WebFetch"})


@dataclass(frozen=True)
class Evaluation:
    """How a decision came about.

    Args:
        decision: the decision.
        parts: the parts of the request (after rewrites), empty if it could not be taken apart.
        verdicts: for each layer, in order, what it says about each part.
    """

    decision: Decision
    parts: tuple[Part, ...] = ()
    verdicts: tuple[tuple[Layer, tuple[PartVerdict, ...]], ...] = ()


def decide(request: ToolRequest, policy: Policy, facts: Facts) -> Decision:
    """What becomes of a call.

    Pure and deterministic. Whatever the engine cannot vouch for is denied: an unknown tool or field, a path or a
    script that cannot be judged, a call that no rule of some layer allows.

    Args:
        request: the call.
        policy: the layers that must all agree.
        facts: everything else that is known.

    Returns:
        The decision. An ``input`` in it replaces the call's input as a whole; its own decision is already included.
    """
    return evaluate(request, policy, facts).decision


def evaluate(request: ToolRequest, policy: Policy, facts: Facts) -> Evaluation:
    """The decision with its whole reasoning. See :func:`decide`."""
    name = canonical_name(request.tool) if isinstance(request.tool, str) else ""
    if name in ALWAYS_ALLOWED:
        return Evaluation(Decision(Effect.ALLOW, f"{name} is always allowed.", "rookery:always-allowed"))
    if not name or not isinstance(request.input, Mapping):
        return _refused("rookery:input", "The tool call was malformed.")
    if name in NEVER_OFFERED:
        return _refused("rookery:not-offered", f"{name} is not offered to agents of this server: do without it.")
    stripped = request
    if name == "Bash" and _FORCED in request.input:
        # The sandbox holds whatever the CLI believes of its own; the field is taken out all the same (row R20).
        rest = {key: value for key, value in request.input.items() if key != _FORCED}
        stripped = replace(request, input=rest)
    first = _judged(stripped, policy, facts)
    if first.decision.effect is Effect.DENY:
        return first
    rewritten, applied = _rewritten(stripped, name, first.parts, policy, facts)
    if rewritten is None:
        if stripped is request:
            return first
        return replace(first, decision=replace(first.decision, input=dict(stripped.input)))
    second = _judged(replace(request, input=rewritten), policy, facts)
    strict = first if first.decision.effect.strictness > second.decision.effect.strictness else second
    matched = tuple(dict.fromkeys((*first.decision.matched, *applied, *second.decision.matched)))
    decision = replace(strict.decision, matched=matched, requests=second.decision.requests)
    if decision.effect is not Effect.DENY:
        decision = replace(decision, input=rewritten)
    return replace(second, decision=decision)


def _refused(rule: str, because: str) -> Evaluation:
    return Evaluation(Decision(Effect.DENY, because, rule))


def _rewritten(
    request: ToolRequest, name: str, parts: tuple[Part, ...], policy: Policy, facts: Facts
) -> tuple[dict[str, Any] | None, list[MatchedRule]]:
    """The input after the rewrites of all layers, or None if they change nothing, and the rules that applied."""
    given: Mapping[str, Any] = request.input
    applied: list[MatchedRule] = []
    for layer in policy.layers:
        for rule, place in layer.rewrites(parts, _matcher(layer, request, facts)):
            applied.append(_matched(rule, layer, place))
            given = apply_settings(name, given, rule.rewrite)
    return (None if dict(given) == dict(request.input) else dict(given)), applied


def _matched(rule: Rule, layer: Layer, place: int) -> MatchedRule:
    effect = "rewrite" if rule.effect is None else rule.effect.value
    return MatchedRule(rule.id, effect, layer.name, rule.because, place, rule.file, rule.line)


def _judged(request: ToolRequest, policy: Policy, facts: Facts) -> Evaluation:
    """Every part of the request put to every layer."""
    try:
        parts = parts_of(request, facts)
    except RefusedError as error:
        return _refused(error.rule, error.because)
    call = parts[0]
    if request.role is not None and not any(layer.roles for layer in policy.layers):
        return _refused("rookery:role", f"The policy {policy.name} knows no roles.")
    if call.tool in _NETWORK_TOOLS and not policy.egress.permits_fetch(str(request.input.get("url"))):
        return _refused(
            "rookery:network", f"The network of this sandbox does not reach {', '.join(call.hosts)}: {_known(policy)}."
        )
    verdicts: list[tuple[Layer, tuple[PartVerdict, ...]]] = []
    for layer in policy.layers:
        matcher = _matcher(layer, request, facts)
        fault = layer.call_fault(call, matcher)
        found = [layer.judge(part, matcher) for part in parts]
        if fault is not None:
            found[0] = PartVerdict(Effect.DENY, None, *fault, found[0].matched)
        verdicts.append((layer, tuple(found)))
    return Evaluation(_combined(parts, verdicts), parts, tuple(verdicts))


def _matcher(layer: Layer, request: ToolRequest, facts: Facts) -> Matcher:
    return Matcher(facts, request.role if layer.role is None else layer.role)


def _outranks(verdict: PartVerdict, effect: Effect, other: PartVerdict, strictest: Effect) -> bool:
    """Whether a verdict is stricter, or as strict and says more: a rule, then a built-in check, then the default."""
    if effect is not strictest:
        return effect.strictness > strictest.strictness
    return effect is not Effect.ALLOW and _weight(verdict) > _weight(other)


def _weight(verdict: PartVerdict) -> int:
    return 2 if verdict.rule is not None else 1 if verdict.builtin is not None else 0


def _known(policy: Policy) -> str:
    hosts = policy.network
    return f"the policy lets out {', '.join(hosts[:10])}" if hosts else "the policy lets nothing out"


def _combined(parts: tuple[Part, ...], verdicts: list[tuple[Layer, tuple[PartVerdict, ...]]]) -> Decision:
    """The strictest verdict of all layers over all parts; of equals the most telling, then the first."""
    strictest = Effect.ALLOW
    decider: tuple[Layer, PartVerdict] | None = None
    effects = [Effect.ALLOW] * len(parts)
    matched: list[MatchedRule] = []
    for layer, found in verdicts:
        for place, verdict in enumerate(found):
            matched.extend(_matched(rule, layer, place) for rule in verdict.matched)
            if verdict.effect is None:
                continue
            effects[place] = effects[place].meet(verdict.effect)
            if decider is None or _outranks(verdict, verdict.effect, decider[1], strictest):
                strictest, decider = verdict.effect, (layer, verdict)
    # The call of Bash as such and the script as a whole say nothing that its parts do not.
    requests = tuple(
        SubRequest(part.kind.value, part.tool, part.text, effects[place])
        for place, part in enumerate(parts)
        if part.kind is not PartKind.TOOL or part.called != "Bash" or len(parts) == 1
    )
    if decider is None:
        return Decision(Effect.ALLOW, "Nothing in this call needs a rule.", None, tuple(matched), None, requests)
    layer, verdict = decider
    rule_id = verdict.rule.id if verdict.rule is not None else verdict.builtin
    return Decision(
        strictest,
        verdict.because,
        rule_id,
        tuple(matched),
        None,
        requests,
        layer.name,
        verdict.rule.ask_ttl_s if verdict.rule is not None else None,
    )
