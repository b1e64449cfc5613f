"""Short ways to ask the engine, shared by its tests."""

from __future__ import annotations

from typing import Any

from policies import Decision, Effect, Facts, Policy, ToolRequest, decide, parse_policy

ALLOW, ASK, DENY = Effect.ALLOW, Effect.ASK, Effect.DENY


def policy_of(*rules: str, head: str = "", name: str = "test") -> Policy:
    """A policy of rules written as YAML flow mappings."""
    lines = ["version: 1", *head.splitlines(), *(["rules:"] if rules else [])]
    return parse_policy("\n".join([*lines, *(f"  - {rule}" for rule in rules)]), name=name)


def bash(command: str, policy: Policy, facts: Facts | None = None, **fields: Any) -> Decision:
    """What becomes of a shell command."""
    return decide(ToolRequest("Bash", {"command": command, **fields}), policy, facts or Facts())


def call(tool: str, policy: Policy, facts: Facts | None = None, **fields: Any) -> Decision:
    """What becomes of any call."""
    return decide(ToolRequest(tool, fields), policy, facts or Facts())


def read(path: str, policy: Policy, facts: Facts | None = None) -> Effect:
    """What becomes of reading a file."""
    return call("Read", policy, facts, file_path=path).effect


def write(path: str, policy: Policy, facts: Facts | None = None) -> Effect:
    """What becomes of writing a file."""
    return call("Write", policy, facts, file_path=path, content="").effect


NPM_TEST = "{id: tests, effect: allow, tools: [Bash], when: {argv: [npm, test]}}"
"""The rule that most rows of the catalogue try to get around."""

WHOLE_SHELL = "{id: shell, effect: allow, tools: [Bash]}"
"""Any command whatever, so that only denials decide."""
