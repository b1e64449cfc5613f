"""Hypothesis strategies: policies and requests that have a chance of meeting."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from policies import Policy, PolicyError, ToolRequest, parse_policy

PROGRAMS: Final = ("npm", "git", "curl", "rm", "python", "env", "ls", "bash", "find", "cat")
WORDS: Final = ("test", "push", "-rf", ".env", "src/a.py", "../x", "/etc/passwd", "*.py", "-c", "'git push'", "$X", ".")
PATHS: Final = ("workspace/**", "workspace/src/**", "**/.env", "/etc/**", "~/.ssh/**", "/tmp/**", "**/*.py", "/**")
FILES: Final = ("a.py", "src/a.py", ".env", "src/.ENV", "../etc/passwd", "/etc/passwd", "~/.ssh/id", "/tmp/x", "/", ".")
FILE_TOOLS: Final = ("Read", "Write", "Edit", "Grep")


def _flow(value: Any) -> str:
    """A value as YAML flow text; JSON is YAML."""
    import json

    return json.dumps(value)


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    """One rule of the kinds that decide."""
    effect = draw(st.sampled_from(("allow", "allow", "ask", "deny")))
    kind = draw(st.sampled_from(("argv", "path", "shell", "files", "bash path")))
    rule: dict[str, Any] = {"effect": effect, "because": "drawn"}
    if kind == "argv":
        argv = [draw(st.sampled_from(PROGRAMS)), *draw(st.lists(st.sampled_from(WORDS[:3]), max_size=1))]
        rule |= {"tools": ["Bash"], "when": {"argv": argv, "exact": draw(st.booleans())}}
    elif kind == "path":
        tools = draw(st.lists(st.sampled_from(FILE_TOOLS), min_size=1, max_size=3, unique=True))
        rule |= {"tools": tools, "when": {"path": draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=2))}}
    elif kind == "shell":
        rule |= {"tools": ["Bash"]}
    elif kind == "files":
        rule |= {"tools": draw(st.lists(st.sampled_from(FILE_TOOLS), min_size=1, max_size=3, unique=True))}
    else:
        rule |= {"tools": ["Bash", "Read"], "when": {"path": [draw(st.sampled_from(PATHS))]}}
        if effect in ("deny", "ask"):
            rule["advisory"] = draw(st.booleans())
    return rule


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A policy of up to six rules that loads; dead rules are left out until it does."""
    drawn = draw(st.lists(rules(), max_size=6))
    head: dict[str, Any] = {"version": 1}
    if draw(st.booleans()):
        head["default"] = draw(st.sampled_from(("deny", "ask")))
    if draw(st.booleans()):
        head["unprovable"] = draw(st.sampled_from(("deny", "ask")))
    hosts = draw(st.lists(st.sampled_from(("a.test", "*.a.test", "pypi.org", "*")), max_size=2, unique=True))
    if hosts:
        drawn.append({"effect": "allow", "because": "net", "network": [{"host": host} for host in hosts]})
    while True:
        named = [{"id": f"r{place}", **rule} for place, rule in enumerate(drawn)]
        try:
            return parse_policy(_flow({**head, "rules": named}), name="drawn")
        except PolicyError as error:
            if "never decides anything" not in error.message:
                raise
            dead = int(error.message.split("'r", 1)[1].split("'", 1)[0])
            del drawn[dead]


def commands() -> st.SearchStrategy[str]:
    """Shell commands, most of them well formed."""
    simple = st.builds(
        lambda program, words: " ".join([program, *words]),
        st.sampled_from(PROGRAMS),
        st.lists(st.sampled_from(WORDS), max_size=3),
    )
    return st.builds(
        lambda parts, joint, tail: joint.join(parts) + tail,
        st.lists(simple, min_size=1, max_size=3),
        st.sampled_from((" && ", "; ", " | ", "\n", " || ")),
        st.sampled_from(("", "", " > out", " > /etc/x", " 2>&1", " $(ls)", " &", " <<E\nx\nE")),
    )


def requests() -> st.SearchStrategy[ToolRequest]:
    """Tool calls of every kind."""
    shell = st.builds(lambda command: ToolRequest("Bash", {"command": command}), commands())
    file = st.builds(
        lambda tool, path: ToolRequest(tool, {"pattern": "x", "path": path} if tool == "Grep" else {"file_path": path}),
        st.sampled_from(FILE_TOOLS),
        st.sampled_from(FILES),
    )
    web = st.just(ToolRequest("WebFetch", {"url": "https://a.test/x", "prompt": ""}))
    return st.one_of(shell, shell, file, file, web)
