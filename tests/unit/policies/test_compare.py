"""Explanations, table tests, simulation and diffs."""

from __future__ import annotations

import json

import pytest

from policies import Facts, PolicyError, ToolRequest, combine, load_policy
from policies.calls import parse_call
from policies.compare import diff, read_table, run_cases, simulate
from policies.explain import explain
from tests.unit.policies.calls import ALLOW, DENY, NPM_TEST, WHOLE_SHELL, policy_of


def test_an_explanation_names_layer_line_and_what_was_lacking() -> None:
    policy = combine(organisation=policy_of(WHOLE_SHELL, name="acme"), session=policy_of(NPM_TEST, name="mine"))
    explanation = explain(parse_call("Bash(npm test && npx x)"), policy, Facts())
    text = explanation.as_text(every_rule=True)
    assert text.startswith("DENY: No rule of the policy mine allows the command npx x")
    assert "decided by the default in the layer session" in text
    assert "+ allow shell (acme.yaml:3)" in text
    assert "- allow tests (mine.yaml:3): its conditions do not hold" in text
    shown = json.loads(json.dumps(explanation.as_dict()))
    assert shown["decision"] == "deny"
    assert [part["text"] for part in shown["parts"]] == ["npm test && npx x", "npm test", "npx x", "x"]
    assert [layer["effect"] for layer in shown["parts"][2]["layers"]] == ["allow", "deny"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("Bash(find . -delete)", "needs exact: true (find with -delete)"),
        ("Bash(sudo ls)", "its conditions do not hold"),
        ("Read(a)", "speaks of other tools than Read"),
    ],
)
def test_a_rule_that_did_not_match_says_why(call: str, says: str) -> None:
    policy = policy_of("{id: f, effect: allow, tools: [Bash], when: {argv: [find]}}")
    assert says in explain(parse_call(call), policy, Facts()).as_text(every_rule=True)


def test_an_explanation_without_parts_shows_the_check_that_decided() -> None:
    explanation = explain(ToolRequest("Bash", {"command": "echo 'x"}), load_policy("workspace"), Facts())
    assert explanation.parts == ()
    assert "decided by rookery:script" in explanation.as_text()


TABLE = """
- {call: "Bash(npm test)", expect: allow, rule: tests}
- call: Bash(npm publish)
  expect: deny
- {tool: Read, input: {file_path: a}, expect: allow}
"""


def test_a_table_of_cases_is_run_and_says_which_fail() -> None:
    cases = read_table(TABLE, "cases.yaml")
    assert [case.line for case in cases] == [2, 3, 5]
    results = run_cases(cases, policy_of(NPM_TEST))
    assert [result.passed for result in results] == [True, True, False]
    assert (results[2].effect, results[2].rule) == (DENY, None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{}", 1),
        ("- x", 1),
        ("- {call: Bash(ls), expect: allow}\n- {call: Bash(ls), expect: maybe}", 2),
        ("- {call: Bash(ls), expect: allow, why: x}", 1),
        ("- {call: 'ls -l', expect: allow}", 1),
        ("- {expect: allow}", 1),
        ("- {call: Bash(ls), tool: Bash, expect: allow}", 1),
        ("- {call: Bash(ls), expect: allow, role: 1}", 1),
    ],
)
def test_a_faulty_table_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(PolicyError) as caught:
        read_table(text, "cases.yaml")
    assert (caught.value.file, caught.value.line) == ("cases.yaml", line)


def test_a_simulation_lists_the_calls_that_change() -> None:
    calls = [parse_call(text) for text in ("Bash(ls)", "Bash(npm test)", "Read(a)")]
    changes = simulate(calls, policy_of(WHOLE_SHELL), policy_of(NPM_TEST))
    assert [(change.request.input["command"], change.before, change.after) for change in changes] == [
        ("ls", ALLOW, DENY)
    ]
    assert changes[0].tightened
    timed = simulate([(calls[0], Facts(now=1))], policy_of(NPM_TEST), policy_of(WHOLE_SHELL))
    assert not timed[0].tightened


def test_a_diff_shows_rules_tools_network_limits_and_changed_decisions() -> None:
    found = diff(load_policy("workspace"), load_policy("trusted"))
    assert found.rules == ("+ all-files", "+ web")
    assert found.tools == ("+ Skill", "+ WebFetch", "+ WebSearch")
    assert found.network == ("+ *",)
    assert {change.request.input["file_path"] for change in found.changes} >= {"/etc/passwd"}
    assert not any(change.tightened for change in found.changes)
    assert not diff(load_policy("workspace"), load_policy("workspace"))
    limited = diff(policy_of(NPM_TEST), policy_of(NPM_TEST.replace("allow", "ask"), head="limits: {turns: 3}"))
    assert (limited.rules, limited.limits) == (("~ tests",), ("turns: None -> 3",))


@pytest.mark.parametrize(
    ("text", "tool", "fields"),
    [
        ("Read(./.env)", "Read", {"file_path": "./.env"}),
        ("Task(explore)", "Agent", {"subagent_type": "explore", "prompt": "example"}),
        ('Bash({"command": "ls", "timeout": 5})', "Bash", {"command": "ls", "timeout": 5}),
        ("Bash({ ls; })", "Bash", {"command": "{ ls; }"}),
        ("TaskList", "TaskList", {}),
        ("mcp__a__b({})", "mcp__a__b", {}),
        ("Grep(a(b))", "Grep", {"pattern": "a(b)"}),
    ],
)
def test_calls_are_read_as_people_write_them(text: str, tool: str, fields: dict[str, object]) -> None:
    request = parse_call(text)
    assert (request.tool, dict(request.input)) == (tool, fields)
