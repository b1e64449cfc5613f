"""Path patterns: anchors, components, and the comparison of patterns with patterns."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.globs import UNDOTTED, PatternError, components_meet, parse_pattern, path_expression
from policies.path_sets import compile_paths
from policies.paths import folded


def allows(pattern: str, path: str) -> bool:
    return compile_paths((parse_pattern(pattern),), "/workspace", "/home/agent").allows(path)


def denies(pattern: str, path: str) -> bool:
    return compile_paths((parse_pattern(pattern),), "/workspace", "/home/agent").denies(path)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("/etc/passwd", ["/etc/passwd"], ["/etc/passwd2", "/workspace/etc/passwd", "/etc", "/etc/passwd/x"]),
        ("/etc/**", ["/etc", "/etc/a", "/etc/a/b"], ["/etcetera", "/"]),
        ("/etc/", ["/etc", "/etc/a/b"], ["/etcx"]),
        ("~/.ssh/**", ["/home/agent/.ssh/id"], ["/home/agentx/.ssh/id", "/root/.ssh/id"]),
        ("~", ["/home/agent"], ["/home/agent/x"]),
        ("workspace", ["/workspace"], ["/workspace/a"]),
        ("workspace/**", ["/workspace", "/workspace/a/b"], ["/workspace-evil/a", "/"]),
        ("workspace/*.py", ["/workspace/a.py", "/workspace/.py"], ["/workspace/a/b.py", "/workspace/a.pyc"]),
        ("**/.env", ["/.env", "/a/.env", "/a/b/.env"], ["/a.env", "/.env/x"]),
        ("**/a/**/b", ["/a/b", "/x/a/y/z/b", "/a/a/b/b"], ["/ab", "/a/bc", "/b/a"]),
        ("/a?c", ["/abc"], ["/ac", "/a/c"]),
        ("/[ab]x", ["/ax", "/bx"], ["/cx", "/abx"]),
        ("/[!a]x", ["/bx"], ["/ax", "//x"]),
        ("/a*b*c", ["/abc", "/axxbyyc", "/abbc"], ["/ab", "/a/b/c"]),
        ("/a.b", ["/a.b"], ["/axb"]),
        ("/", ["/", "/a/b"], []),
        ("**", ["/", "/a"], []),
        ("/a[", ["/a["], ["/a"]),
    ],
)
def test_a_pattern_covers_what_its_anchor_says(pattern: str, inside: list[str], outside: list[str]) -> None:
    assert [path for path in inside if not allows(pattern, path)] == []
    assert [path for path in outside if allows(pattern, path)] == []


def test_a_denial_reaches_everything_below_its_match() -> None:
    assert denies("workspace/secret", "/workspace/secret/deep/file")
    assert denies("**/.git", "/workspace/.git/hooks/x")
    assert not denies("workspace/secret", "/workspace/secrets")


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        ("src/**", "workspace/src/**"),
        ("./src", "workspace/src"),
        (".env", "**/.env"),
        ("*.py", "**/*.py"),
        ("!/etc/x", "effect deny"),
        ("/a/{b,c}", "alternatives"),
        ("/a\\b", "use / only"),
        ("/a/../b", "plainly"),
        ("/a//b", "plainly"),
        ("/a**", "slashes"),
        ("/[z-a]", "[a-z]"),
        ("", "1 to"),
        ("/" + "x" * 600, "1 to"),
        ("/" + "a/" * 70, "at most"),
        ("$HOME/x", "anywhere"),
    ],
)
def test_a_pattern_that_could_be_misread_is_refused_with_a_remedy(pattern: str, remedy: str) -> None:
    with pytest.raises(PatternError) as caught:
        parse_pattern(pattern)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("pattern", ["/" + "*a" * 200, "**/a*/**/b*/**/c*/**/d*/**/e", "/" + "?*" * 200])
def test_no_pattern_takes_more_than_a_moment(pattern: str) -> None:
    start = time.process_time()
    for path in ("/" + "a" * 4000, "/a" * 2000, "/" + "ab" * 2000 + "/" + "b" * 90):
        denies(pattern, path)
    assert time.process_time() - start < 2


NAMES = st.text(alphabet="ab-", min_size=1, max_size=3)
GLOBS = st.text(alphabet="ab-*?", min_size=1, max_size=3).filter(lambda text: "**" not in text)


@settings(max_examples=300, deadline=None)
@given(
    first=st.lists(GLOBS | st.just("**"), min_size=1, max_size=4),
    second=st.lists(GLOBS | st.just("**"), min_size=1, max_size=4),
    path=st.lists(NAMES, min_size=1, max_size=4),
)
def test_patterns_that_share_a_path_are_found_to_meet(first: list[str], second: list[str], path: list[str]) -> None:
    def covers(components: list[str]) -> bool:
        return allows("/" + "/".join(components), "/" + "/".join(path))

    if covers(first) and covers(second):
        assert components_meet(first, second)
        assert components_meet(second, first)


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        (["**", ".env"], ["src", "*"], True),
        (["**", ".env"], ["src", f"{UNDOTTED}*"], False),
        (["**", ".env"], ["src", f"{UNDOTTED}*.py"], False),
        (["**", "*.env"], ["src", f"{UNDOTTED}*"], True),
        (["a", "**"], ["b", "**"], False),
        (["a", "**", "c"], ["a", "b", "**"], True),
        (["a*"], ["*b"], True),
        (["a*"], ["b*"], False),
        (["[ab]"], ["c"], True),
        (["a"], ["a", "b"], False),
    ],
)
def test_two_patterns_meet_if_a_path_could_match_both(first: list[str], second: list[str], meet: bool) -> None:
    assert components_meet(first, second) is meet


MANY_NAMES = ("a", "b.py", "Secret", ".env", "x[y", "\uff41", "b\uff0fc", "src")
MANY_STEPS = (*MANY_NAMES, "*", "**", "*.py", "?", "[ab]", "s*t", ".*")
MANY = st.lists(
    st.builds(
        lambda anchor, steps: anchor + "/".join(steps) if steps else anchor.rstrip("/") or "/",
        st.sampled_from(("/", "~/", "workspace/", "**/")),
        st.lists(st.sampled_from(MANY_STEPS), max_size=3),
    ),
    min_size=1,
    max_size=8,
)


@given(MANY, st.lists(st.sampled_from(("workspace", "home", "agent", *MANY_NAMES)), max_size=5))
def test_a_denial_among_many_reaches_what_its_expression_says(patterns: list[str], steps: list[str]) -> None:
    roots = {"/": "", "~": "/home/agent", "workspace": "/workspace"}
    parsed = tuple(map(parse_pattern, patterns))
    form = folded("/" + "/".join(steps))
    reached = [
        pattern.text
        for pattern in parsed
        if re.fullmatch(
            path_expression(roots[pattern.anchor], tuple(map(folded, pattern.components)), below=True) or "/", form
        )
    ]
    assert compile_paths(parsed, "/workspace", "/home/agent").denies(form) is bool(reached), reached


@given(MANY, st.lists(st.sampled_from((*MANY_STEPS, f"{UNDOTTED}*", f"{UNDOTTED}*.py")), max_size=4))
def test_many_patterns_meet_a_glob_when_one_of_them_does(patterns: list[str], steps: list[str]) -> None:
    parsed = tuple(map(parse_pattern, patterns))
    glob = tuple(map(folded, steps))
    roots: dict[str, tuple[str, ...]] = {"/": (), "~": ("home", "agent"), "workspace": ("workspace",)}
    meeting = [
        pattern.text
        for pattern in parsed
        if components_meet((*roots[pattern.anchor], *map(folded, pattern.components), "**"), glob)
    ]
    assert compile_paths(parsed, "/workspace", "/home/agent").meets(glob) is bool(meeting), meeting
