"""Tool inputs, rewrites, layers and rule files (rows R20 to R25 of the catalogue of attacks)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import PRESETS, Facts, Policy, PolicyError, ToolRequest, combine, decide, load_policy, parse_policy
from tests.unit.policies.calls import ALLOW, ASK, DENY, NPM_TEST, WHOLE_SHELL, bash, call, policy_of
from tests.unit.policies.strategies import policies, requests

WORKSPACE = load_policy("workspace")


@pytest.mark.parametrize("value", [True, False, "true", None])
def test_r20_the_field_that_disables_the_sandbox_is_taken_out(value: object) -> None:
    """R20: dangerouslyDisableSandbox never reaches the CLI (CVE-2026-42074, claude-code #13583)."""
    decision = bash("ls", WORKSPACE, dangerouslyDisableSandbox=value, timeout=5)
    assert decision.effect is ALLOW
    assert decision.input == {"command": "ls", "timeout": 5}


@pytest.mark.parametrize(
    ("tool", "fields"),
    [
        ("Bash", {"command": "ls", "sandbox": False}),
        ("Bash", {"command": "ls", "cwd": "/"}),
        ("Read", {"file_path": "a", "follow": True}),
        ("Agent", {"prompt": "x", "mode": "bypassPermissions"}),
        ("Agent", {"prompt": "x", "isolation": "remote"}),
        ("Agent", {"prompt": "x", "cwd": "/"}),
        ("Write", {"file_path": "a", "content": "", "add_dirs": ["/"]}),
        ("TodoWrite", {"todos": [], "run": "x"}),
    ],
)
def test_r20_an_unknown_field_denies(tool: str, fields: dict[str, Any]) -> None:
    """R20: what a field would do that the engine does not know is not known."""
    decision = call(tool, WORKSPACE, **fields)
    assert (decision.effect, decision.rule) == (DENY, "rookery:input")


@pytest.mark.parametrize(
    ("tool", "fields"),
    [
        ("Bash", {"command": ["ls"]}),
        ("Bash", {}),
        ("Bash", {"command": ""}),
        ("Bash", {"command": "ls", "run_in_background": []}),
        ("Read", {"file_path": {"x": 1}}),
        ("Read", {"file_path": None}),
        ("TodoWrite", {"todos": "x"}),
        ("WebSearch", {"query": "x", "allowed_domains": "a.test"}),
    ],
)
def test_r20_a_field_of_the_wrong_type_denies(tool: str, fields: dict[str, Any]) -> None:
    """R20: nothing is guessed of a malformed call."""
    assert call(tool, load_policy("trusted"), **fields).effect is DENY


def test_r20_background_commands_can_be_ruled() -> None:
    """R20: a rule may look at a field."""
    policy = policy_of(
        WHOLE_SHELL,
        "{id: bg, effect: deny, tools: [Bash], when: {input: {run_in_background: true}}, because: none}",
    )
    assert bash("ls", policy, run_in_background=True).rule == "bg"
    assert bash("ls", policy, run_in_background=False).effect is ALLOW
    forced = policy_of(WHOLE_SHELL, "{id: fg, effect: rewrite, tools: [Bash], set: {run_in_background: false}}")
    assert bash("ls", forced, run_in_background=True).input == {"command": "ls", "run_in_background": False}


@pytest.mark.parametrize("tool", ["CronCreate", "ScheduleWakeup", "SendMessage", "AskUserQuestion", "EnterWorktree"])
def test_r20_tools_that_act_behind_the_server_are_denied_by_every_preset(tool: str) -> None:
    """DESIGN section 4: whatever a model calls, these do not run."""
    for name in PRESETS:
        assert decide(ToolRequest(tool, {}), load_policy(name), Facts()).rule == "rookery:not-offered"
        assert tool not in load_policy(name).offered_tools()
        assert tool not in load_policy(name).offered_tools([tool])


@pytest.mark.parametrize("tool", ["NoSuchTool", "", "bash", "Bash ", "mcp__", "mcp__x", "../Bash", "Bash\x00", "*"])
def test_an_unknown_tool_is_denied_by_every_preset(tool: str) -> None:
    for name in PRESETS:
        assert decide(ToolRequest(tool, {"command": "ls"}), load_policy(name), Facts()).effect is DENY


def test_r21_a_rewritten_input_is_judged_again() -> None:
    """R21: a rewrite that leads into a denial is denied (CC 2.1.110)."""
    policy = policy_of(
        WHOLE_SHELL,
        "{id: slow, effect: rewrite, tools: [Bash], set: {timeout: 1000}}",
        "{id: quick, effect: deny, tools: [Bash], when: {input: {timeout: 1000}}, because: refused}",
    )
    decision = bash("ls", policy)
    assert (decision.effect, decision.rule) == (DENY, "quick")
    assert decision.input is None
    assert {found.rule for found in decision.matched} >= {"slow", "quick"}


def test_r21_a_rewrite_grants_nothing() -> None:
    """R21: it changes a call that something else allows."""
    policy = policy_of("{id: slow, effect: rewrite, tools: [Bash], set: {timeout: 1000}}", NPM_TEST)
    assert bash("rm -rf x", policy).effect is DENY
    assert bash("npm test", policy).input == {"command": "npm test", "timeout": 1000}


def test_r22_a_denial_wins_over_every_allow() -> None:
    """R22: wherever the allow comes from, in whatever order (CC 2.1.77)."""
    deny = "{id: no, effect: deny, tools: [Bash], when: {argv: [npm, test, now]}, because: refused}"
    ask = "{id: maybe, effect: ask, tools: [Bash], when: {argv: [npm, test, soon]}, because: asked}"
    for rules in ((NPM_TEST, deny, ask), (ask, deny, NPM_TEST)):
        policy = policy_of(*rules)
        assert bash("npm test now", policy).rule == "no"
        assert bash("npm test soon", policy).effect is ASK
        assert bash("npm test", policy).effect is ALLOW
        assert bash("npm test soon; npm test now", policy).effect is DENY


def test_r23_what_the_engine_is_told_by_a_broken_lookup_never_becomes_an_allow() -> None:
    """R23: a lookup that raises raises out of decide; the gate around it denies."""

    def broken(path: str) -> str | None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        call("Read", WORKSPACE, Facts(links=broken), file_path="a")


FAULTY = {
    "unknown tool": ("{id: a, effect: allow, tools: [Raed]}", "did you mean Read?"),
    "unknown key": ("{id: a, effect: allow, tool: [Read]}", "did you mean 'tools'?"),
    "unknown condition": ("{id: a, effect: allow, tools: [Read], when: {paths: [/x]}}", "did you mean 'path'?"),
    "unknown effect": ("{id: a, effect: permit, tools: [Read]}", "allow"),
    "missing id": ("{effect: allow, tools: [Read]}", "add id:"),
    "no tools": ("{id: a, effect: allow}", "add tools"),
    "tool that cannot be allowed": ("{id: a, effect: allow, tools: [CronCreate]}", "cannot be allowed"),
    "every tool allowed": ('{id: a, effect: allow, tools: ["*"]}', "list the tools"),
    "server pattern": ('{id: a, effect: allow, tools: ["mcp__*__read"]}', "name the server"),
    "unanchored path": ('{id: a, effect: deny, tools: [Read], when: {path: ["src/**"]}}', "workspace/src/**"),
    "unanchored name": ('{id: a, effect: deny, tools: [Read], when: {path: [".env"]}}', "**/.env"),
    "negated path": ('{id: a, effect: deny, tools: [Read], when: {path: ["!/x"]}}', "effect deny"),
    "unknown role": ("{id: a, effect: allow, tools: [Read], roles: [boss]}", "under roles"),
    "words for a file tool": ("{id: a, effect: allow, tools: [Read, Bash], when: {argv: [ls]}}", "rule of their own"),
    "path for a tool without": ('{id: a, effect: deny, tools: [TodoWrite], when: {path: ["/x"]}}', "leave the tool"),
    "unknown field": ("{id: a, effect: deny, tools: [Bash], when: {input: {cmd: ls}}}", "its fields: command"),
    "loosening rewrite": ("{id: a, effect: rewrite, tools: [Bash], set: {run_in_background: true}}", "only be set to"),
    "rewrite of content": ("{id: a, effect: rewrite, tools: [Bash], set: {command: ls}}", "fields of Bash that can"),
    "bad host": ('{id: a, effect: allow, network: [{host: "10.0.0.1"}]}', "only host names"),
    "paths without interception": ('{id: a, effect: allow, network: [{host: a.test, paths: [/x]}]}', "intercept"),
    "false example": ("{id: a, effect: deny, tools: [Bash], when: {argv: [ls]}, examples: {match: [Bash(x)]}}", "mend"),
    "text as number": ("{id: 1, effect: allow, tools: [Read]}", "quote it"),
    "empty tools": ("{id: a, effect: allow, tools: []}", "tools"),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "remedy"), FAULTY.values(), ids=FAULTY.keys())
def test_r24_a_faulty_rule_is_refused_with_line_and_remedy(rule: str, remedy: str) -> None:
    """R24: rules that would do nothing, or something else, are not loaded."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(f"version: 1\n# a comment\nrules:\n  - {rule}\n", name="mine")
    assert caught.value.file == "mine.yaml"
    assert caught.value.line == 4
    assert remedy in str(caught.value)


def test_r24_dead_and_duplicate_rules_are_refused() -> None:
    """R24: a rule that never decides anything is a mistake."""
    duplicate = (NPM_TEST, "{id: tests, effect: deny, tools: [Write], because: refused}")
    with pytest.raises(PolicyError, match="'tests' stands already in line 3") as caught:
        policy_of(*duplicate)
    assert caught.value.line == 4
    with pytest.raises(PolicyError, match="overruled by 'none'"):
        policy_of("{id: none, effect: deny, tools: [Bash], because: refused}", NPM_TEST)
    with pytest.raises(PolicyError, match="repeated by 'shell'"):
        policy_of(WHOLE_SHELL, NPM_TEST)
    with pytest.raises(PolicyError, match="overruled"):
        policy_of(
            '{id: a, effect: allow, tools: [Read], when: {path: ["workspace/a/**"]}}',
            '{id: b, effect: deny, tools: [Read, Write], when: {path: ["workspace/**"]}}',
        )


def parents_and_children() -> st.SearchStrategy[tuple[Policy, Policy]]:
    return st.tuples(policies(), policies())


@settings(max_examples=60, deadline=None)
@given(pair=parents_and_children(), asked=st.lists(requests(), min_size=1, max_size=6))
def test_r25_a_child_can_never_do_what_its_parent_may_not(
    pair: tuple[Policy, Policy], asked: list[ToolRequest]
) -> None:
    """R25: whatever policy a child asks for, it holds beneath its parent's (CC 2.1.186, 2.1.223)."""
    parent, wanted = pair
    child = combine(parent=parent, session=wanted)
    for request in asked:
        before, after = decide(request, parent, Facts()), decide(request, child, Facts())
        assert after.effect.strictness >= before.effect.strictness
    assert set(child.offered_tools()) <= set(parent.offered_tools())
    for host in ("a.test", "b.a.test", "pypi.org"):
        assert parent.egress.permits(host) or not child.egress.permits(host)


def test_r25_a_child_of_a_narrow_parent_stays_narrow() -> None:
    """R25: the widest preset beneath the narrowest is the narrowest."""
    child = combine(parent=load_policy("read-only"), session=load_policy("trusted"))
    assert bash("ls", child).effect is DENY
    assert call("Write", child, file_path="a", content="").effect is DENY
    assert call("Read", child, file_path="a").effect is ALLOW
    assert child.network == ()
    assert "Bash" not in child.offered_tools()


def test_r25_depth_and_children_are_bounded_by_the_strictest_layer() -> None:
    """R25: nested agents are counted."""
    spawn = "{id: spawn, effect: allow, tools: [mcp__rookery]}"
    parent = policy_of(spawn, head="limits: {depth: 2, children: 3}")
    child = combine(parent=parent, session=policy_of(spawn, head="limits: {depth: 9, children: 2}"))
    assert (child.limits.depth, child.limits.children) == (2, 2)
    request = ToolRequest("mcp__rookery__spawn_agent", {"prompt": "x"})
    assert decide(request, child, Facts(depth=1, children=1)).effect is ALLOW
    assert decide(request, child, Facts(depth=2)).rule == "rookery:depth"
    assert decide(request, child, Facts(children=2)).rule == "rookery:children"
