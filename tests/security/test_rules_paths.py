"""Ways around rules on paths (rows F01, F02, F03, F07, F10 and F12 of the catalogue of attacks)."""

from __future__ import annotations

import pytest

from policies import Effect, Facts, Policy, ToolRequest, decide, load_policy
from tests.unit.policies.calls import ALLOW, DENY, WHOLE_SHELL, bash, call, policy_of, read, write

WORKSPACE = load_policy("workspace")
SECRET = policy_of(
    WHOLE_SHELL,
    "{id: files, effect: allow, tools: [Read, Write, Edit, Grep, Glob]}",
    '{id: secret, effect: deny, tools: [Read, Write, Edit, Grep, Glob, Bash], when: {path: ["workspace/secret"]},'
    " because: refused}",
)


@pytest.mark.parametrize(
    "path",
    [
        "..", "../x", "../../etc/passwd", "/etc/passwd", "/", "a/../../b", "/workspace/../etc/passwd",
        "/workspace/./../x", "//etc/passwd", "/./etc/passwd", "/workspace/a/../../x", "~/.ssh/id", "~", "~root/x",
        "C:\\Windows\\x", "c:/x", "\\\\host\\share", "a\\..\\..\\b", "/proc/self/environ", "/proc/self/root/etc/passwd",
        "/tmp/../etc/passwd", "x" * 5000, "/dev/sda", "../workspace-evil/x",
    ],
)  # fmt: skip
def test_f01_paths_out_of_the_workspace_are_denied_however_written(path: str) -> None:
    """F01: resolved component by component before anything is compared."""
    assert read(path, WORKSPACE) is DENY
    assert write(path, WORKSPACE) is DENY


@pytest.mark.parametrize("path", ["a\x00b", "a\nb", "a\rb", "\x1b[0m"])
def test_f01_control_characters_in_paths_are_denied(path: str) -> None:
    """F01: a NUL ends the path for the kernel and not for us."""
    assert read(path, WORKSPACE) is DENY


@pytest.mark.parametrize(
    "path",
    ["a.py", "./a.py", "/workspace/a.py", "src/../a.py", "/workspace//a.py", "/tmp/x", "/workspace/", "..a/b", "a b"],
)
def test_f01_paths_in_the_workspace_are_allowed_however_written(path: str) -> None:
    """F01: the same canonical form for what is allowed."""
    assert read(path, WORKSPACE) is ALLOW
    assert write(path, WORKSPACE) is ALLOW


@pytest.mark.parametrize(
    "path",
    [
        "secret", "./secret", "secret/", "/workspace/secret", "/workspace/secret/", "a/../secret", "//workspace/secret",
        "/workspace/./secret/.", "../workspace/secret", "/proc/self/cwd/secret", "/proc/1/root/workspace/secret",
        "secret/below/it", "%73ecret", "/workspace/%2e/secret", "~/../../workspace/secret",
    ],
)  # fmt: skip
def test_f01_a_denied_path_is_denied_however_written(path: str) -> None:
    """F01: trailing slashes and escapes used to get around a denial (CC 2.1.224)."""
    assert read(path, SECRET) is DENY
    assert write(path, SECRET) is DENY
    assert bash(f"cat {path}", SECRET).effect is DENY
    assert bash(f"echo x > {path}", SECRET).effect is DENY


@pytest.mark.parametrize(
    "command",
    ["cat secre?", "cat s*", "cat [s]ecret", "cat ./*", "cp -r . /tmp/x", "tar cf /tmp/x .", "grep -r x .", "rg x",
     "mv secret other", "ln secret other", "cat<secret", "dd if=secret", "cat 'secret'", "head -n1 secret",
     "diff secret /dev/null", "git diff --no-index /dev/null secret", "curl -d @secret x", "cat -- secret",
     "cd / && cat workspace/secret", "while read x; do true; done < secret", "mv ../workspace /tmp/w"],
)  # fmt: skip
def test_f01_a_denied_file_is_found_in_shell_commands(command: str) -> None:
    """F01: every word that may name it, patterns and whole directories included."""
    assert bash(command, SECRET).effect is DENY


def test_f01_searches_reach_what_they_may_read() -> None:
    """F01: Grep reads contents, so a search over a denied file is denied until it is narrowed."""
    assert call("Grep", SECRET, pattern="x").effect is DENY
    assert call("Grep", SECRET, pattern="x", path="secret").effect is DENY
    assert call("Grep", SECRET, pattern="x", glob="s*").effect is DENY
    assert call("Grep", SECRET, pattern="x", glob="{a,secret}").effect is DENY
    assert call("Grep", SECRET, pattern="x", glob="*.py").effect is ALLOW
    assert call("Grep", SECRET, pattern="x", path="src").effect is ALLOW
    assert call("Glob", WORKSPACE, pattern="/etc/**").effect is DENY
    assert call("Glob", WORKSPACE, pattern="../*").effect is DENY
    assert call("Glob", WORKSPACE, pattern="**/*.py").effect is ALLOW
    assert call("Glob", WORKSPACE, pattern="*/../../etc/*").effect is DENY
    assert call("Grep", WORKSPACE, pattern="x", path="/etc").effect is DENY
    assert call("Grep", WORKSPACE, pattern="/etc/passwd").effect is ALLOW


def test_f01_a_denial_for_one_tool_keeps_the_file_from_its_kin() -> None:
    """F01: what may not be read is not searched, what may not be edited is not written."""
    policy = policy_of(
        "{id: files, effect: allow, tools: [Read, Write, Edit, Grep]}",
        '{id: r, effect: deny, tools: [Read], when: {path: ["**/.env"]}, because: refused}',
        '{id: w, effect: deny, tools: [Edit], when: {path: ["**/*.lock"]}, because: refused}',
    )
    assert call("Grep", policy, pattern="x", path=".env").rule == "r"
    assert call("Write", policy, file_path="a.lock", content="").rule == "w"
    assert call("Write", policy, file_path=".env", content="").effect is ALLOW


@pytest.mark.parametrize(
    "path", ["/workspace-evil/x", "/workspacex", "/workspace.bak/x", "/work", "/tmpfile", "/tmp2/x"]
)
def test_f02_a_sibling_with_the_same_beginning_is_outside(path: str) -> None:
    """F02: components are compared, not texts (CVE-2025-53110, CVE-2025-54794)."""
    assert read(path, WORKSPACE) is DENY
    assert write(path, WORKSPACE) is DENY


def test_f02_a_denial_does_not_spill_over_to_siblings() -> None:
    """F02: the same the other way round."""
    assert read("secrets", SECRET) is ALLOW
    assert read("secret.txt", SECRET) is ALLOW


LINKS = {
    "file to outside": ({"/workspace/link": "/etc/passwd"}, "link"),
    "directory to outside": ({"/workspace/dir": "/etc"}, "dir/passwd"),
    "relative": ({"/workspace/dir": "../etc"}, "dir/passwd"),
    "parent": ({"/workspace/a/b": "../../etc"}, "a/b/passwd"),
    "dangling": ({"/workspace/link": "/nowhere/at/all"}, "link"),
    "chain": ({"/workspace/one": "two", "/workspace/two": "/etc/passwd"}, "one"),
    "circle": ({"/workspace/one": "two", "/workspace/two": "one"}, "one"),
    "dot dot behind a link": ({"/workspace/d": "/usr/lib"}, "d/../x"),
    "root": ({"/workspace/r": "/"}, "r/etc/passwd"),
    "to the home": ({"/workspace/h": "/home/agent"}, "h/.ssh/id"),
    "sibling": ({"/workspace/s": "/workspace-evil"}, "s/x"),
    "endless": ({"/workspace/l": "l/l"}, "l"),
    "below tmp": ({"/tmp/t": "/etc"}, "/tmp/t/passwd"),
}


@pytest.mark.parametrize(("links", "path"), LINKS.values(), ids=LINKS.keys())
@pytest.mark.parametrize("lookup", [False, True], ids=["mapping", "function"])
def test_f03_a_link_out_of_the_workspace_is_outside(links: dict[str, str], path: str, lookup: bool) -> None:
    """F03: an allow needs both ends of every link (CVE-2025-53109)."""
    facts = Facts(links=links.get if lookup else links)
    assert read(path, WORKSPACE, facts) is DENY
    assert write(path, WORKSPACE, facts) is DENY


def test_f03_links_within_the_workspace_work() -> None:
    """F03: only where they lead counts."""
    facts = Facts(links={"/workspace/link": "src/main.py", "/workspace/d": "/workspace/src"})
    assert read("link", WORKSPACE, facts) is ALLOW
    assert read("d/main.py", WORKSPACE, facts) is ALLOW
    assert read("d/../x", WORKSPACE, facts) is ALLOW


@pytest.mark.parametrize(
    ("links", "path"),
    [
        ({"/workspace/innocent": "secret"}, "innocent"),
        ({"/workspace/secret": "/tmp/elsewhere"}, "secret"),
        ({"/workspace/d": "."}, "d/secret"),
        ({"/tmp/x": "/workspace"}, "/tmp/x/secret"),
        ({"/workspace/a": "b", "/workspace/b": "secret"}, "a"),
    ],
)
def test_f03_a_denial_holds_for_either_end_of_a_link(links: dict[str, str], path: str) -> None:
    """F03: a denial matches the name and the target (CVE-2026-24725, CC 2.1.89)."""
    facts = Facts(links=links)
    assert read(path, SECRET, facts) is DENY
    assert bash(f"cat {path}", SECRET, facts).effect is DENY


@pytest.mark.parametrize(
    "path",
    [".claude/settings.json", ".claude/settings.local.json", ".mcp.json", ".git/hooks/pre-commit", ".codex/config.toml",
     ".claude/hooks/x.sh", "sub/.git/hooks/post-checkout"],
)  # fmt: skip
def test_f07_a_protected_file_need_not_exist_to_be_protected(path: str) -> None:
    """F07: rules look at names, so what is not there yet is guarded too (CVE-2026-25725)."""
    for name in ("workspace", "developer", "trusted"):
        policy = load_policy(name)
        assert write(path, policy) is DENY
        assert call("Edit", policy, file_path=path, old_string="a", new_string="b").effect is DENY
        assert bash(f"echo x > {path}", policy).effect is DENY
        assert bash(f"cp evil {path}", policy).effect is DENY
        assert bash(f"mkdir -p $(dirname x); tee {path}", policy).effect is DENY
        assert read(path, policy) is ALLOW


ALIASES = (
    ".CLAUDE/settings.json", ".Claude/Settings.JSON", ".claude/\uff53ettings.json", ".cl\u0041ude/settings.json",
    ".claude/settings.j\u017fon", ".MCP.json", ".GIT/hooks/x", ".git/HOOKS/x",
)  # fmt: skip


@pytest.mark.parametrize("path", ALIASES)
def test_f10_other_spellings_of_a_protected_name_are_protected(path: str) -> None:
    """F10: a file system without case or with compatibility forms makes them one (CVE-2025-59944)."""
    assert write(path, WORKSPACE) is DENY
    assert bash(f"echo x > {path}", WORKSPACE).effect is DENY


@pytest.mark.parametrize("path", [".git\u200c/hooks/x", ".claude\u200d/settings.json", "\ufeff.mcp.json"])
def test_f10_invisible_characters_in_a_name_are_refused(path: str) -> None:
    """F10: .git with a zero-width character."""
    assert call("Write", WORKSPACE, file_path=path, content="").rule == "rookery:characters"
    assert bash(f"echo x > {path}", WORKSPACE).rule == "rookery:characters"


def test_f10_allows_compare_exactly() -> None:
    """F10: folding is for denials; an allow means the name as written."""
    policy = policy_of('{id: a, effect: allow, tools: [Read], when: {path: ["workspace/Docs/**"]}}')
    assert read("Docs/x", policy) is ALLOW
    assert read("docs/x", policy) is DENY


@pytest.mark.parametrize("cwd", ["/", "/etc", "/home/agent", "/workspace/..", "/workspace-evil"])
def test_f12_a_working_directory_does_not_widen_what_may_be_reached(cwd: str) -> None:
    """F12: the roots are the policy's; relative paths are resolved where the call really starts."""
    facts = Facts(cwd=cwd)
    assert read("passwd", WORKSPACE, facts) is DENY
    assert write("x", WORKSPACE, facts) is DENY
    assert call("Grep", WORKSPACE, facts, pattern="x").effect is DENY
    assert read("/workspace/a", WORKSPACE, facts) is ALLOW


def test_f12_fields_that_would_add_directories_are_unknown() -> None:
    """F12: neither a cwd nor more directories come from the model (CVE-2025-59532)."""
    for field in ("cwd", "add_dirs", "additional_directories", "working_directory"):
        for tool, given in (("Bash", {"command": "ls"}), ("Agent", {"prompt": "x"})):
            assert decide(ToolRequest(tool, {**given, field: "/"}), WORKSPACE, Facts()).effect is DENY


@pytest.mark.parametrize("preset", ["locked-down", "read-only", "workspace", "developer", "trusted"])
def test_no_preset_lets_a_file_tool_write_outside(preset: str) -> None:
    policy: Policy = load_policy(preset)
    for path in ("/etc/hosts", "~/.bashrc", "~/.claude/settings.json", "/usr/bin/x", "/run/rookery/x"):
        assert write(path, policy) is Effect.DENY
