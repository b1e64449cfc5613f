"""A policy's decision as an answer for people and programs: the very decision that the gates would get."""

from __future__ import annotations

from policies import Decision, Facts, Policy, ToolRequest, decide
from server.views import PolicyExplanation, PolicyMatch


def explain(policy: Policy, request: ToolRequest, facts: Facts) -> PolicyExplanation:
    """Decide, and say why."""
    decision = decide(request, policy, facts)
    return PolicyExplanation(
        policy=policy.name,
        digest=policy.digest,
        tool=request.tool,
        decision=decision.effect.value,
        rule=decision.rule,
        because=decision.because,
        matched=tuple(
            PolicyMatch(
                rule=match.rule,
                effect=match.effect,
                layer=match.layer,
                because=match.because,
                part=_part(decision, match.part),
                file=match.file,
                line=match.line,
            )
            for match in decision.matched
        ),
        input=None if decision.input is None else dict(decision.input),
    )


def _part(decision: Decision, index: int) -> str:
    return decision.requests[index].text if 0 <= index < len(decision.requests) else ""
