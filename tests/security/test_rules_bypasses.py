"""Bypasses that are in no catalogue: found by attacking the engine with what shells, programs and servers do."""

from __future__ import annotations

import pytest

from policies import Effect
from tests.unit.policies.calls import ALLOW, DENY, NPM_TEST, WHOLE_SHELL, bash, call, policy_of

ONLY_TESTS = policy_of(NPM_TEST)

TOOLS = policy_of(
    "{id: t, effect: allow, tools: [Bash], when: {argv: [[test, printf, env, git, echo, sort, tar]]}, because: x}",
    '{id: bracket, effect: allow, tools: [Bash], when: {argv: ["["]}, because: x}',
)

NO_CURL = policy_of(
    WHOLE_SHELL,
    "{id: curl, effect: deny, tools: [Bash], when: {argv: [curl]}, because: x}",
    '{id: env, effect: deny, tools: [Read, Bash], when: {path: ["**/.env"]}, because: x}',
)


@pytest.mark.parametrize(
    "command",
    [
        "wait -p 'a[$(id)]'",
        "wait -p 'a[$(id)]'; npm test",
        "export 'a[$(id)]=1'",
        "set -- 'a[$(id)]'; npm test",
        "exit 'a[$(id)]'; source x",
    ],
)
def test_no_builtin_that_needs_no_rule_runs_what_its_words_hide(command: str) -> None:
    """Bash runs the command in a subscript when it looks the variable up, quoted or not."""
    assert bash(command, ONLY_TESTS).effect is DENY


@pytest.mark.parametrize(
    "command",
    [
        "test -v 'a[$(id)]'",
        "[ -v 'a[$(id)]' ]",
        "[ 'a[$(id)]' -eq 0 ]",
        "[[ -v 'a[$(id)]' ]]",
        "[[ 'a[$(id)]' -eq 0 ]]",
        "[[ x -eq y ]]",
        "[[ a =~ $(id) ]]",
        "[[ -f $(id) ]]",
        "[ a < b ]",
        "[ a > b ]",
        "[ -f a ]] && env",
        "[ -f a ;env ]",
        "test -R 'a[`id`]'",
        "printf -v 'a[$(id)]' x",
        "env - PATH=. echo",
        "env -S 'sh -c id'",
        "git grep -O./evil x",
        "git --exec-path=/tmp log",
        "sort --compress-prog=./evil a",
        "tar xf a --to-comm=sh",
    ],
)
def test_an_allowed_program_is_not_allowed_where_it_runs_another(command: str) -> None:
    assert bash(command, TOOLS).effect is DENY


@pytest.mark.parametrize(
    "command",
    [
        "env - curl x",
        "env -i - curl x",
        "valgrind curl x",
        "perf stat curl x",
        "choom -n 1 curl x",
        "i386 curl x",
        "x86_64 curl x",
        "rlwrap curl x",
        "hyperfine 'curl x'",
        "dotenv run curl x",
        "op run -- curl x",
        "foreman run curl x",
        "rtx x -- curl",
        "mise x -- curl x",
        "doppler run -- curl x",
        "gosu nobody curl x",
        "tini -- curl x",
        "ip netns exec n curl x",
        "watchexec curl x",
        "/lib/ld-2.31.so /usr/bin/curl x",
        "printf 'curl x' | xargs -0 sh -c",
        "exec -a x curl y",
        "git rebase -x 'curl x' HEAD~1",
        "bash -O extglob -c 'curl x'",
    ],
)
def test_a_denied_program_is_found_behind_programs_that_start_others(command: str) -> None:
    assert bash(command, NO_CURL).effect is DENY


@pytest.mark.parametrize(
    "command",
    [
        "git grep KEY",
        "git grep -n KEY -- .",
        "git grep --untracked KEY",
        "git --no-pager grep KEY",
        "cat /proc/self/cwd/.env",
        "cat /proc/1/root/workspace/.env",
        "node --env-file=.env x",
        "tar -T .env -cf x",
        "exec < .env",
        "cat /dev/fd/3 3<.env",
    ],
)
def test_a_denied_file_is_found_in_what_reads_it_by_other_ways(command: str) -> None:
    assert bash(command, NO_CURL).effect is DENY


@pytest.mark.parametrize("command", ["git log -3", "test -v HOME", "wait", "printf '%s' 'a[0]'"])
def test_what_only_looks_like_it_is_left_alone(command: str) -> None:
    assert bash(command, NO_CURL).effect is ALLOW


@pytest.mark.parametrize(
    ("tool", "effect"),
    [
        ("mcp__git__get_issue", ALLOW),
        ("mcp__git__get_secret", DENY),
        ("mcp__git__get_Secret", DENY),
        ("mcp__git__GET_SECRET", DENY),
        ("mcp__git__get_token_x", DENY),
        ("mcp__git__get_TOKEN_x", DENY),
        ("mcp__Git__get_issue", DENY),
        ("mcp__git__get_secret ", DENY),
        ("mcp__git__get_secret\u200b", DENY),
        ("mcp__git__get_\u0455ecret", DENY),
        ("Mcp__git__get_issue", DENY),
    ],
)
def test_a_denied_tool_of_a_server_is_denied_in_any_case_and_allowed_only_as_named(tool: str, effect: Effect) -> None:
    policy = policy_of(
        "{id: get, effect: allow, tools: [mcp__git__get_*], because: x}",
        "{id: secret, effect: deny, tools: [mcp__git__get_secret], because: x}",
        "{id: tokens, effect: deny, tools: [mcp__git__get_token_*], because: x}",
    )
    assert call(tool, policy).effect is effect


@pytest.mark.parametrize(
    ("url", "effect"),
    [
        ("https://a.example.com/pub/x", ALLOW),
        ("http://a.example.com/pub/x", ALLOW),
        ("https://a.example.com/other", DENY),
        ("https://a.example.com/pub/../other", DENY),
        ("https://a.example.com/pub%2f..%2fother", DENY),
        ("https://a.example.com:8443/pub/x", DENY),
        ("https://a.example.com", DENY),
    ],
)
def test_a_fetch_is_allowed_only_where_the_proxy_would_let_that_very_request_out(url: str, effect: Effect) -> None:
    policy = policy_of(
        "{id: fetch, effect: allow, tools: [WebFetch], because: x}",
        '{id: net, effect: allow, network: [{host: "*.example.com", methods: [GET], paths: [/pub], intercept: true}]}',
    )
    assert call("WebFetch", policy, url=url, prompt="x").effect is effect
