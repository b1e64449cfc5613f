"""Policies by name: presets, files, and what a faulty file is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies import PRESETS, Facts, PolicyError, load_policy, parse_policy, policy_names
from policies.compiler import matches
from policies.lint import Severity, lint
from policies.loader import preset
from tests.unit.policies.calls import ALLOW, DENY, WHOLE_SHELL, bash, call, policy_of, read, write

GOOD = "version: 1\nrules:\n  - {id: read, effect: allow, tools: [Read], because: reading}\n"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_without_a_finding_of_lint(name: str) -> None:
    policy = load_policy(name)
    assert policy.name == name
    assert [str(finding) for finding in lint(policy) if "advisory" not in finding.message] == []


def test_each_preset_allows_what_the_narrower_ones_do() -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("TaskCreate", {"subject": "x", "description": "y"}),
        ("Read", {"file_path": "a"}),
        ("Write", {"file_path": "a", "content": ""}),
        ("Bash", {"command": "make && ./run.sh $X"}),
        ("WebSearch", {"query": "x"}),
    ]
    allowed = {
        name: [tool for tool, fields in calls if call(tool, load_policy(name), **fields).effect is ALLOW]
        for name in PRESETS
    }
    assert allowed == {
        "locked-down": ["TaskCreate"],
        "read-only": ["TaskCreate", "Read"],
        "workspace": ["TaskCreate", "Read", "Write", "Bash"],
        "developer": ["TaskCreate", "Read", "Write", "Bash"],
        "trusted": ["TaskCreate", "Read", "Write", "Bash", "WebSearch"],
    }


def test_the_networks_of_the_presets() -> None:
    assert [load_policy(name).network for name in PRESETS[:3]] == [(), (), ()]
    developer = load_policy("developer").egress
    assert developer.permits("pypi.org") and developer.permits("registry.npmjs.org")
    assert not developer.permits("example.com") and not developer.permits("pypi.org", 80)
    assert load_policy("trusted").network == ("*",)


def test_the_default_policy_leaves_ordinary_work_alone() -> None:
    workspace = load_policy("workspace")
    for command in (
        "git status && git diff | head -50",
        'for f in *.py; do python -m py_compile "$f"; done',
        "cat <<EOF > notes.md\n$(date)\nEOF",
        "npm install && npm test -- --watch=false 2>&1 | tail -30",
        "rm -rf build node_modules && mkdir -p build",
        "python - <<'E'\nprint(1)\nE",
        "find . -name '*.pyc' -delete; grep -rn TODO src | wc -l",
        "[ -f x ] && echo yes || echo no",
        "curl -s https://example.com; cat ~/.bashrc",
        "git commit -m 'Mend .claude/settings.json' --allow-empty",
    ):
        assert bash(command, workspace).effect is ALLOW, command
    assert read("~/.claude/projects/-workspace/id/tool-results/x.txt", workspace) is ALLOW
    assert write("~/.claude/projects/x", workspace) is DENY


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    (tmp_path / "other.yml").write_text(GOOD)
    (tmp_path / "notes.txt").write_text("x")
    assert policy_names(tmp_path) == (*PRESETS, "mine", "other")
    for name in ("theirs", "", "../mine", "mine.yaml", "/etc/passwd", "MINE", "mine\x00"):
        with pytest.raises(PolicyError) as caught:
            load_policy(name, tmp_path)
        assert "known policies: locked-down, read-only, workspace, developer, trusted, mine, other" in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
    assert call("Read", load_policy("mine", tmp_path), file_path="/x").effect is ALLOW
    assert load_policy("other", tmp_path).layers[0].rules[0].file == "other.yml"


def test_a_directory_or_file_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="directory of policies cannot be read"):
        load_policy("mine", tmp_path / "nowhere")
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="not UTF-8"):
        load_policy("mine", tmp_path)
    (tmp_path / "workspace.yaml").write_text(GOOD)
    with pytest.raises(PolicyError, match="name of a preset"):
        load_policy("workspace", tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "no policy"),
        ("- a", 1, "no policy"),
        ("rules: []", 1, "'version' is missing"),
        ("version: 2", 1, "version"),
        ("version: 1\nrulez: []", 2, "did you mean 'rules'?"),
        ("version: 1\nversion: 1", 2, "stands here twice"),
        ("version: 1\nrules: &a []\nroles: *a", 3, "aliases are not used here"),
        ("version: 1\nrules: !!python/object:os.system []", 2, "the tag"),
        ("version: 1\ndescription: !x y", 2, "the tag !x"),
        ("version: 1\nrules:\n - {id: a", None, "not YAML"),
        ("version: 1\n\trules: []", 2, "not YAML"),
        ("version: 1\nextends: none", 2, "no preset named 'none'"),
        ("version: 1\nlimits: {usd: -1}", 2, "greater than 0"),
        ("version: 1\nlimits: {wall: 2 weeks}", 2, "not a duration"),
        ("version: 1\nlimits:\n  turns: 3\n  turn: 4", 4, "did you mean 'turns'?"),
        ("version: 1\nlimits: {turns: true}", 2, "integer"),
        ("version: 1\nroles:\n  a: {tools: [Nope]}", 3, "no tool named 'Nope'"),
        ("version: 1\nroles:\n  a: {tool: [Read]}", 3, "did you mean 'tools'?"),
        ("version: 1\nrules:\n- id: a\n  effect: allow\n  tools: [Bash]\n  when:\n    argv: []", 7, "argv"),
        ("version: 1\nrules:\n- id: a\n  effect: allow\n  tools: [Bash]\n  when:\n    exact: true", 6, "exact goes"),
        ("version: 1\nrules:\n- id: a\n  effect: deny\n  tools: [Bash]\n  ask: {ttl: 5m}", 3, "ask belongs to"),
        ("version: 1\nrules:\n- id: a\n  effect: ask\n  tools: [Bash]\n  ask: {ttl: 5m, remember: always}", 6, "never"),
        ("version: 1\nextends: workspace\nrules:\n- {id: shell, effect: ask, tools: [Bash]}", 4, "preset workspace"),
        ("version: 1\nrules: " + "[" * 3000, None, "YAML"),
        ("version: 1\ndescription: " + "x" * 300_000, None, "larger than"),
        ("version: 1\ndescription: \x00", None, "YAML"),
        ("version: 1\n? [a]\n: b", 2, "plain word"),
        ("version: 1\n<<: {a: b}", 2, "plain word"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_with_its_line(text: str, line: int | None, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, name="mine")
    assert caught.value.file == "mine.yaml"
    if line is not None:
        assert caught.value.line == line
        assert f"mine.yaml:{line}: " in str(caught.value)
    assert says in str(caught.value)


def test_words_that_yaml_once_took_for_booleans_stay_words() -> None:
    policy = parse_policy("version: 1\nrules:\n  - {id: no, effect: allow, tools: [Read], because: yes}\n", name="x")
    assert (policy.layers[0].rules[0].id, policy.layers[0].rules[0].because) == ("no", "yes")


def test_a_policy_extends_a_preset_and_tightens_or_adds() -> None:
    policy = parse_policy(
        "version: 1\nid: acme/dev\nextends: workspace\nlimits: {turns: 5}\nrules:\n"
        "  - {id: no-push, effect: deny, advisory: true, tools: [Bash], when: {argv: [git, push]}, because: refused}\n"
        "  - {id: docs, effect: allow, network: [{host: docs.test.org}]}\n",
        name="dev",
    )
    assert bash("git push", policy).rule == "no-push"
    assert bash("git pull", policy).effect is ALLOW
    assert write(".mcp.json", policy) is DENY
    assert (policy.network, policy.limits.turns) == (("docs.test.org",), 5)
    assert {rule.file for rule in policy.layers[0].rules} == {"workspace", "dev.yaml"}


def test_examples_are_checked_against_the_rule_alone() -> None:
    rule = policy_of(
        "{id: tests, effect: allow, tools: [Bash], when: {argv: [npm, test]}, examples: "
        '{match: ["Bash(npm test -x)", "Bash(true && npm test)"], '
        'not_match: ["Bash(npm test && ls)", "Bash(npm t)", "Read(npm)", "Bash(npm test $X)"]}}'
    ).layers[0].rules[0]  # fmt: skip
    from policies.calls import parse_call

    assert matches(rule, parse_call('Bash({"command": "npm test"})'), Facts())
    with pytest.raises(PolicyError, match="matches its example"):
        policy_of('{id: a, effect: deny, tools: [Bash], when: {argv: [ls]}, examples: {not_match: ["Bash(ls -l)"]}}')
    with pytest.raises(PolicyError, match="is not a call"):
        policy_of('{id: a, effect: deny, tools: [Bash], when: {argv: [ls]}, examples: {match: ["ls -l"]}}')


def test_lint_warns_of_what_is_likely_not_meant() -> None:
    policy = policy_of(
        "{id: py, effect: allow, tools: [Bash], when: {argv: [python]}, because: x}",
        "{id: web, effect: allow, tools: [WebFetch], because: x}",
        '{id: secret, effect: deny, tools: [Read], when: {path: ["**/.env"]}, because: x}',
        "{id: host, effect: deny, tools: [Bash], when: {domain: [evil.test]}, because: x}",
        "{id: mute, effect: allow, tools: [Agent]}",
        "{id: all, effect: allow, tools: [Bash], because: x}",
    )
    findings = {finding.rule: finding for finding in lint(policy)}
    assert set(findings) == {"py", "web", "secret", "host", "mute"}
    assert {finding.severity for finding in findings.values()} == {Severity.WARNING}
    assert findings["secret"].remedy == "add Bash to its tools"
    assert str(findings["py"]).startswith("test.yaml:3: warning: the rule 'py' allows python")


def test_lint_warns_of_short_names_of_models_which_no_request_carries() -> None:
    policy = parse_policy("version: 1\nmodels: [claude-haiku-*, sonnet]\n", name="short")
    (finding,) = lint(policy)
    assert (finding.severity, finding.remedy) == (Severity.WARNING, "write claude-sonnet-*")
    assert "'sonnet'" in finding.message


def test_an_exact_rule_beside_a_prefix_is_not_taken_for_dead() -> None:
    policy_of(
        "{id: git, effect: allow, tools: [Bash], when: {argv: [git]}}",
        "{id: odd, effect: allow, tools: [Bash], when: {argv: [git, -c, a.b=c, log], exact: true}}",
        "{id: py, effect: allow, tools: [Bash], when: {argv: [python]}}",
        "{id: run, effect: allow, tools: [Bash], when: {argv: [python, run.py]}}",
    )
    with pytest.raises(PolicyError, match="repeated by 'git'"):
        policy_of(
            "{id: git, effect: allow, tools: [Bash], when: {argv: [git]}}",
            "{id: log, effect: allow, tools: [Bash], when: {argv: [git, log]}}",
        )


def test_presets_are_loaded_once() -> None:
    assert preset("workspace") is load_policy("workspace")
    assert policy_of(WHOLE_SHELL) is not policy_of(WHOLE_SHELL)
