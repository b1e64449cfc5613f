"""What decides: roles, state, limits, rewrites, MCP tools, the web, and the record of a decision."""

from __future__ import annotations

from typing import Any

import pytest

from policies import Decision, Facts, Limits, Policy, PolicyError, ToolRequest, ToolUse, combine, decide, load_policy
from tests.unit.policies.calls import ALLOW, ASK, DENY, NPM_TEST, WHOLE_SHELL, bash, call, policy_of


def test_nothing_is_allowed_by_default() -> None:
    empty = policy_of()
    decision = call("Read", empty, file_path="a")
    assert (decision.effect, decision.rule, decision.layer) == (DENY, None, "profile")
    assert "No rule of the policy test allows Read /workspace/a" in decision.because


def test_a_policy_may_ask_by_default_instead() -> None:
    asking = policy_of(head="default: ask")
    assert call("Read", asking, file_path="a").effect is ASK
    assert call("NoSuchTool", asking).effect is DENY
    assert asking.could_allow("Read")


@pytest.mark.parametrize("tool", ["StructuredOutput", "ToolSearch"])
def test_the_answer_and_the_search_for_tools_are_always_allowed(tool: str) -> None:
    closed = policy_of('{id: all, effect: deny, tools: ["*"], because: closed}')
    assert decide(ToolRequest(tool, {"any": ["shape"]}), closed, Facts()).effect is ALLOW


def test_one_denial_of_every_tool_is_an_emergency_stop() -> None:
    closed = combine(
        organisation=policy_of('{id: stop, effect: deny, tools: ["*"], because: closed}'),
        session=load_policy("trusted"),
    )
    for tool, fields in (("Bash", {"command": "ls"}), ("Read", {"file_path": "a"}), ("mcp__a__b", {}), ("Agent", {})):
        assert decide(ToolRequest(tool, fields), closed, Facts()).effect is DENY
    assert closed.offered_tools() == ()


def test_a_decision_records_every_rule_and_part() -> None:
    policy = policy_of(
        WHOLE_SHELL,
        "{id: push, effect: ask, tools: [Bash], when: {argv: [git, push]}, because: asks, ask: {ttl: 5m}}",
        "{id: net, effect: deny, tools: [Bash], when: {argv: [curl]}, because: denies}",
    )
    decision = bash("git push; curl x; ls", policy)
    assert (decision.effect, decision.rule, decision.because) == (DENY, "net", "denies")
    assert {(found.rule, found.effect, found.line) for found in decision.matched} == {
        ("shell", "allow", 3),
        ("push", "ask", 4),
        ("net", "deny", 5),
    }
    assert [(part.kind, part.text, part.effect) for part in decision.requests] == [
        ("command", "git push", ASK),
        ("command", "curl x", DENY),
        ("command", "ls", ALLOW),
    ]
    assert bash("git push", policy).ask_ttl_s == 300


def test_an_ask_lifts_the_default_denial_and_tightens_an_allow() -> None:
    policy = policy_of("{id: push, effect: ask, tools: [Bash], when: {argv: [git, push]}, because: asks}", NPM_TEST)
    assert bash("git push", policy).effect is ASK
    assert bash("npm test && git push", policy).effect is ASK
    assert bash("git pull", policy).effect is DENY
    assert bash("git -C /tmp push", policy).effect is DENY


def test_a_role_narrows_to_its_tools_and_to_its_rules() -> None:
    policy = policy_of(
        "{id: read, effect: allow, tools: [Read, Write]}",
        "{id: commit, effect: allow, tools: [Bash], roles: [author], when: {argv: [git, commit]}}",
        head="roles: {reviewer: {tools: [Read]}, author: {tools: [Read, Write, Bash]}}",
    )

    def as_role(role: str | None, tool: str, **fields: Any) -> Decision:
        return decide(ToolRequest(tool, fields, role), policy, Facts())

    assert as_role(None, "Write", file_path="a").effect is ALLOW
    assert as_role("reviewer", "Read", file_path="a").effect is ALLOW
    assert as_role("reviewer", "Write", file_path="a").rule == "rookery:role"
    assert as_role("author", "Bash", command="git commit").effect is ALLOW
    assert as_role(None, "Bash", command="git commit").effect is DENY
    assert as_role("stranger", "Read", file_path="a").rule == "rookery:role"
    assert decide(ToolRequest("Read", {"file_path": "a"}, "reviewer"), load_policy("trusted"), Facts()).effect is DENY


def test_a_rule_may_hold_only_after_a_tool_was_used() -> None:
    policy = policy_of(
        WHOLE_SHELL,
        "{id: web, effect: deny, tools: [Bash], when: {argv: [git, push], after: {tool: WebFetch}}}",
        "{id: soon, effect: deny, tools: [Bash], when: {argv: [ls], after: {tool: mcp__x, within: 1m}}}",
        "{id: turn, effect: deny, tools: [Bash], when: {argv: [id], after: {tool: Task, within: turn}}}",
    )
    assert bash("git push", policy).effect is ALLOW
    history = (ToolUse("WebFetch", 0, 1), ToolUse("mcp__x__y", 100, 1), ToolUse("Task", 100, 1))
    assert bash("git push", policy, Facts(history=history, now=9999, turn=7)).rule == "web"
    assert bash("ls", policy, Facts(history=history, now=150)).rule == "soon"
    assert bash("ls", policy, Facts(history=history, now=161)).effect is ALLOW
    assert bash("id", policy, Facts(history=history, turn=1)).rule == "turn"
    assert bash("id", policy, Facts(history=history, turn=2)).effect is ALLOW


def test_a_rule_may_count_what_was_used_those_in_flight_included() -> None:
    policy = policy_of(
        "{id: agents, effect: allow, tools: [Agent]}",
        "{id: few, effect: deny, tools: [Agent], when: {count: {tool: Agent, at_least: 2, within: turn}}}",
    )
    used = (ToolUse("Agent", 0, 3), ToolUse("Read", 0, 3))
    assert call("Agent", policy, Facts(history=used, turn=3), prompt="x").effect is ALLOW
    assert call("Agent", policy, Facts(history=(*used, used[0]), turn=3), prompt="x").rule == "few"
    assert call("Agent", policy, Facts(history=(*used, used[0]), turn=4), prompt="x").effect is ALLOW


def test_calls_within_a_minute_are_bounded() -> None:
    policy = policy_of(WHOLE_SHELL, head="limits: {tool_calls_per_min: 3}")
    history = tuple(ToolUse("Read", at) for at in (0, 50, 55))
    assert bash("ls", policy, Facts(history=history, now=59)).rule == "rookery:rate"
    assert bash("ls", policy, Facts(history=history, now=60)).effect is ALLOW


def test_limits_take_the_smallest_of_all_layers() -> None:
    one = policy_of(head="limits: {usd: 5, turns: 10, wall: 2h}")
    two = policy_of(head="limits: {usd: 7.5, turns: 3, children: 0}")
    assert combine(organisation=one, session=two).limits == Limits(usd=5, turns=3, wall=7200, children=0)


@pytest.mark.parametrize(
    ("given", "setting", "expected"),
    [
        ({}, 60_000, 60_000),
        ({}, 300_000, None),
        ({"timeout": 10}, 60_000, None),
        ({"timeout": 600_000}, 60_000, 60_000),
        ({"timeout": "600000"}, 60_000, 60_000),
        ({"timeout": "soon"}, 60_000, 60_000),
        ({"timeout": float("nan")}, 60_000, 60_000),
        ({"run_in_background": True}, 300_000, 300_000),
    ],
)
def test_a_rewrite_of_a_number_only_makes_it_smaller(given: dict[str, Any], setting: int, expected: int | None) -> None:
    policy = policy_of(WHOLE_SHELL, f"{{id: t, effect: rewrite, tools: [Bash], set: {{timeout_ms: {setting}}}}}")
    decision = bash("ls", policy, **given)
    assert decision.effect is ALLOW
    assert (decision.input or {}).get("timeout") == expected


def test_rewrites_of_several_layers_all_apply() -> None:
    def capped(value: int) -> Policy:
        return policy_of(WHOLE_SHELL, f"{{id: t, effect: rewrite, tools: [Bash], set: {{timeout: {value}}}}}")

    for first, second in ((100, 50), (50, 100)):
        both = combine(organisation=capped(first), session=capped(second))
        assert bash("ls", both).input == {"command": "ls", "timeout": 50}


def test_a_rewrite_narrows_the_hosts_of_a_search() -> None:
    policy = policy_of(
        "{id: s, effect: allow, tools: [WebSearch, Grep]}",
        "{id: d, effect: rewrite, tools: [WebSearch], set: {allowed_domains: [docs.test.org]}}",
        "{id: b, effect: rewrite, tools: [WebSearch], set: {blocked_domains: [x.test]}}",
        "{id: g, effect: rewrite, tools: [Grep], set: {head_limit: 20}}",
    )
    decision = call("WebSearch", policy, query="q", allowed_domains=["docs.test.org", "evil.test"])
    assert decision.input is not None
    assert decision.input["allowed_domains"] == ["docs.test.org"]
    assert decision.input["blocked_domains"] == ["x.test"]
    assert call("WebSearch", policy, query="q").input == {
        "query": "q",
        "allowed_domains": ["docs.test.org"],
        "blocked_domains": ["x.test"],
    }
    assert call("Grep", policy, pattern="x", head_limit=0).input == {"pattern": "x", "head_limit": 20}


def test_tools_of_mcp_servers_are_ruled_by_name_and_field() -> None:
    policy = policy_of(
        '{id: git, effect: allow, tools: [mcp__git, "mcp__jira__get_*"]}',
        "{id: one, effect: allow, tools: [mcp__db__query], when: {input: {mode: [ro, read]}}}",
        "{id: no, effect: deny, tools: [mcp__git__push], because: refused}",
    )
    for tool, effect in (
        ("mcp__git__status", ALLOW),
        ("mcp__git__push", DENY),
        ("mcp__gitlab__status", DENY),
        ("mcp__jira__get_issue", ALLOW),
        ("mcp__jira__delete", DENY),
        ("mcp__db__query", DENY),
    ):
        assert decide(ToolRequest(tool, {"x": 1}), policy, Facts()).effect is effect, tool
    assert decide(ToolRequest("mcp__db__query", {"mode": "ro"}), policy, Facts()).effect is ALLOW
    assert policy.could_allow("mcp__jira__get_issue")
    assert not policy.could_allow("mcp__git__push")


WEB = policy_of(
    '{id: web, effect: allow, tools: [WebFetch], when: {domain: ["*.example.com", docs.test.org]}}',
    '{id: net, effect: allow, network: [{host: "*.example.com"}, {host: docs.test.org, ports: [80, 443]}]}',
)


@pytest.mark.parametrize(
    ("url", "effect"),
    [
        ("https://a.example.com/x", ALLOW),
        ("https://A.EXAMPLE.com./x", ALLOW),
        ("http://docs.test.org", ALLOW),
        ("https://example.com", DENY),
        ("https://evilexample.com", DENY),
        ("https://a.example.com.evil.test", DENY),
        ("https://a.example.com@evil.test/", DENY),
        ("https://evil.test/a.example.com", DENY),
        ("https://evil.test\\@a.example.com", DENY),
        ("https://evil.test#@a.example.com", DENY),
        ("https://a.example.com%2eevil.test", DENY),
        ("file:///etc/passwd", DENY),
        ("ftp://a.example.com", DENY),
        ("https://127.0.0.1", DENY),
        ("https://[::1]/", DENY),
        ("https://0x7f000001/", DENY),
        ("https://2130706433/", DENY),
        ("https://localhost/", DENY),
        ("https://a.example.com:99999/", DENY),
        ("https:// a.example.com", DENY),
        ("https://a.example.com\n", DENY),
        ("//a.example.com", DENY),
        ("", DENY),
    ],
)
def test_a_fetch_is_judged_by_the_host_it_really_speaks_to(url: str, effect: object) -> None:
    assert call("WebFetch", WEB, url=url, prompt="x").effect is effect


def test_a_fetch_that_the_network_would_not_carry_is_denied_with_that_reason() -> None:
    policy = policy_of(
        "{id: web, effect: allow, tools: [WebFetch]}", "{id: net, effect: allow, network: [{host: a.test.org}]}"
    )
    assert call("WebFetch", policy, url="https://a.test.org", prompt="").effect is ALLOW
    decision = call("WebFetch", policy, url="https://b.test.org", prompt="")
    assert decision.rule == "rookery:network"
    assert "a.test.org" in decision.because


def test_the_network_of_several_layers_is_what_all_let_out() -> None:
    wide = policy_of('{id: n, effect: allow, network: [{host: "*.example.com"}, {host: pypi.org, ports: [80, 443]}]}')
    narrow = policy_of('{id: n, effect: allow, network: [{host: "*.a.example.com"}, {host: pypi.org}, {host: x.test}]}')
    denying = policy_of(
        '{id: n, effect: allow, network: [{host: "*"}]}', "{id: d, effect: deny, network: [{host: pypi.org}]}"
    )
    both = combine(organisation=wide, session=narrow)
    assert both.network == ("*.a.example.com", "pypi.org")
    assert both.egress.permits("b.a.example.com")
    assert not both.egress.permits("a.example.com")
    assert not both.egress.permits("pypi.org", 80)
    assert not both.egress.permits("10.0.0.1")
    assert combine(organisation=both, session=denying).network == ("*.a.example.com",)
    assert combine(organisation=both, session=policy_of(WHOLE_SHELL)).network == ()


def test_methods_and_paths_are_looked_at_inside_an_intercepted_connection() -> None:
    policy = policy_of(
        "{id: n, effect: allow, network: [{host: pypi.org, methods: [get, HEAD], paths: [/simple/], intercept: true}]}"
    )
    egress = policy.egress
    assert egress.intercepts("pypi.org")
    assert egress.permits("pypi.org")
    assert egress.permits("pypi.org", method="GET", path="/simple/x/?a=b")
    for method, path in (
        ("POST", "/simple/x"),
        ("GET", "/simplex"),
        ("GET", "/simple/../admin"),
        ("GET", "/simple/%2e%2e/admin"),
    ):
        assert not egress.permits("pypi.org", method=method, path=path)


def test_models_are_permitted_by_every_layer() -> None:
    policy = combine(organisation=policy_of(head='models: ["claude-*"]'), session=policy_of(head='models: ["*haiku*"]'))
    assert policy.permits_model("claude-haiku-5")
    assert not policy.permits_model("claude-opus-5")
    assert policy_of().permits_model("anything")


def test_offered_tools_are_those_that_some_call_could_use() -> None:
    workspace = load_policy("workspace")
    assert workspace.offered_tools() == (
        *("Read", "Write", "Edit", "NotebookEdit", "Glob", "Grep", "Bash", "TaskStop", "Agent"),
        *("TaskCreate", "TaskGet", "TaskList", "TaskUpdate"),
    )
    assert workspace.offered_tools(["Task", "Read", "WebFetch", "CronCreate", "Nonsense"]) == ("Read", "Agent")
    assert workspace.refused_tools(["Task", "Read", "WebFetch", "Nonsense"]) == ("WebFetch", "Nonsense")
    assert workspace.offered_tools(["ToolSearch"]) == ("ToolSearch",)
    assert workspace.offered_tools([]) == ()
    assert load_policy("trusted").server_tools == {"web_search"}
    assert workspace.server_tools == frozenset()


def test_a_session_may_be_restricted_to_some_of_its_tools() -> None:
    narrow = load_policy("workspace").restricted_to(["Task", "Read", "Bash"])
    assert narrow.offered_tools() == ("Read", "Bash", "Agent")
    assert call("Write", narrow, file_path="a", content="").effect is DENY
    assert call("Read", narrow, file_path="a").effect is ALLOW
    assert call("Read", narrow, file_path="/etc/passwd").effect is DENY
    assert bash("ls | wc -l", narrow).effect is ALLOW
    assert load_policy("developer").restricted_to(["Read"]).network == load_policy("developer").network
    with pytest.raises(PolicyError, match="no tool named"):
        load_policy("workspace").restricted_to(["Raed"])


def test_layers_keep_their_names_and_do_not_pile_up_over_generations() -> None:
    organisation, profile = policy_of(WHOLE_SHELL, name="acme"), load_policy("workspace")
    parent = combine(organisation=organisation, profile=profile)
    assert [layer.name for layer in parent.layers] == ["organisation", "profile"]
    child = combine(organisation=organisation, profile=profile, parent=parent)
    grandchild = combine(organisation=organisation, profile=profile, parent=child)
    assert len(grandchild.layers) == 2
    other = combine(parent=parent, session=load_policy("read-only"))
    assert [layer.name for layer in other.layers] == ["parent organisation", "parent profile", "session"]
    assert bash("ls", other).layer == "session"


def test_a_digest_names_what_decides() -> None:
    assert load_policy("workspace").digest == load_policy("workspace").digest
    digests = {load_policy(name).digest for name in ("workspace", "developer", "trusted")}
    digests.add(combine(profile=load_policy("workspace"), session=load_policy("read-only")).digest)
    assert len(digests) == 4


def test_equal_calls_have_equal_digests_and_others_do_not() -> None:
    one = ToolRequest("Bash", {"command": "ls", "timeout": 1})
    assert one.digest == ToolRequest("Bash", {"timeout": 1, "command": "ls"}).digest
    others = (ToolRequest("Bash", {"command": "ls"}), ToolRequest("Bash", {"command": "ls", "timeout": 1}, "r"))
    assert len({one.digest, *(other.digest for other in others)}) == 3


def test_an_advisory_denial_does_not_make_scripts_unprovable() -> None:
    def guarded(advisory: str) -> Policy:
        rule = f"{{id: push, effect: deny, {advisory}tools: [Bash], when: {{argv: [git, push]}}, because: refused}}"
        return policy_of(WHOLE_SHELL, rule)

    assert bash("for f in $(ls); do wc $f; done", guarded("")).rule == "rookery:unprovable"
    assert bash("for f in $(ls); do wc $f; done", guarded("advisory: true, ")).effect is ALLOW
    assert bash("echo $(git push)", guarded("advisory: true, ")).rule == "push"


def test_the_knob_for_what_cannot_be_proved() -> None:
    asking = policy_of(NPM_TEST, head="unprovable: ask")
    decision = bash("npm test $FOO", asking)
    assert (decision.effect, decision.rule) == (ASK, "rookery:unprovable")
    assert bash("npm publish", asking).effect is DENY
    publish = "{id: p, effect: deny, tools: [Bash], when: {argv: [npm, publish]}, because: refused}"
    denying = policy_of(publish, NPM_TEST, head="unprovable: ask")
    assert bash("npm test $(npm publish)", denying).rule == "p"
    assert bash("$X", policy_of(head="unprovable: ask")).effect is DENY


def test_conditions_on_the_directory_hold_for_every_place_a_command_may_run() -> None:
    policy = policy_of('{id: m, effect: allow, tools: [Bash], when: {argv: [make], cwd: ["workspace/a/**"]}}')
    assert bash("make", policy, Facts(cwd="/workspace/a/b")).effect is ALLOW
    assert bash("make", policy).effect is DENY
    assert bash("cd a && make", policy).effect is DENY
    assert bash("cd /workspace/a && make", policy, Facts(cwd="/workspace/a")).effect is ALLOW


def test_an_allow_with_paths_needs_every_plain_word_in_them() -> None:
    policy = policy_of('{id: c, effect: allow, tools: [Bash], when: {argv: [cat], path: ["workspace/docs/**"]}}')
    assert bash("cat docs/a docs/b", policy).effect is ALLOW
    assert bash("cat -n docs/a", policy).effect is ALLOW
    assert bash("cat docs/a /etc/passwd", policy).effect is DENY
    assert bash("cat docs/../../etc/passwd", policy).effect is DENY
    assert bash("cat docs/*.md", policy).effect is ALLOW
    assert bash("cat", policy).effect is DENY


def test_harmless_builtins_need_no_rule() -> None:
    policy = policy_of(NPM_TEST)
    for command in ("set -euo pipefail; npm test", "npm test || exit 1", "true", ": && npm test", "cd src; npm test"):
        assert bash(command, policy).effect is ALLOW, command
    for command in ("set -o posix; npm test", "set +o noclobber -o vi", "exit $(x)", "export -f x"):
        assert bash(command, policy).effect is DENY, command
    assert bash("true", policy_of("{id: r, effect: allow, tools: [Read]}")).effect is DENY
