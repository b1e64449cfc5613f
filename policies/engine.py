"""``decide``: a pure function from a request, a policy and facts to a decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from policies.catalogue import ALWAYS_ALLOWED, TOOLS, FieldKind, canonical_name, input_fault
from policies.paths import UnresolvablePathError, hidden_character, is_below, resolve
from policies.policy import Policy
from policies.types import Decision, Effect, Facts, ToolRequest

MAX_COMMAND: Final = 100_000


def decide(request: ToolRequest, policy: Policy, facts: Facts) -> Decision:
    """What becomes of a call. Never raises on any request, and says deny whatever it cannot vouch for."""
    name = canonical_name(request.tool)
    tool = TOOLS.get(name)
    if name in ALWAYS_ALLOWED:
        return Decision(Effect.ALLOW, "This tool is always allowed.", rule="rookery:always-allowed")
    if tool is None or name not in policy.tools:
        return Decision(Effect.DENY, f"No rule of the policy {policy.name} allows the tool {request.tool[:60]}.")
    given: Mapping[str, Any] = request.input
    if (fault := input_fault(tool, given)) is not None:
        return Decision(Effect.DENY, f"{fault}. Leave it out.", rule="rookery:input")
    for field, value in given.items():
        kind = tool.fields[field]
        if value is None:
            continue
        if kind is FieldKind.COMMAND:
            if len(value) > MAX_COMMAND:
                return Decision(Effect.DENY, f"The command is longer than {MAX_COMMAND:,} characters.", "rookery:size")
            if (hidden := hidden_character(value, allowed="\t\n")) is not None:
                return Decision(Effect.DENY, f"The command holds the character {hidden}.", "rookery:characters")
        if kind in (FieldKind.READ_PATH, FieldKind.WRITE_PATH):
            try:
                path = resolve(value, facts)
            except UnresolvablePathError as error:
                return Decision(Effect.DENY, f"{field}: {error}.", rule="rookery:path")
            roots = (facts.workspace, "/tmp")  # noqa: S108 - the sandbox's own
            if not all(any(is_below(place, root) for root in roots) for place in path.candidates):
                return Decision(Effect.DENY, "Files outside /workspace and /tmp are not for this agent.")
    changed = {key: value for key, value in given.items() if key != "dangerouslyDisableSandbox"}
    return Decision(
        Effect.ALLOW,
        "The policy allows it.",
        rule="workspace",
        input=changed if len(changed) != len(given) else None,
    )
