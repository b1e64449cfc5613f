"""A fuzz target for atheris: no bytes whatever make the readers of untrusted text raise anything unforeseen, or hang.

Run by ``make test-slow``, or by hand: ``python -m tests.fuzzing -max_total_time=60``. Further arguments are
libFuzzer's. The first byte chooses the reader.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

import atheris

with atheris.instrument_imports(include=["policies", "server.egress.hello", "server.egress.targets"]):
    from policies import Effect, Facts, PolicyError, ToolRequest, decide, load_policy, parse_policy
    from policies.hosts import HostError, parse_host_pattern, url_host
    from policies.shell.script import BrokenScriptError
    from policies.shell.syntax import read_script
    from policies.url_paths import may_lie_below, surely_lies_below
    from server.egress.failures import EgressRefusedError
    from server.egress.hello import server_name
    from server.egress.targets import absolute_target, connect_target, host_header_target

GUARDED: Final = parse_policy(
    "version: 1\nextends: workspace\nrules:\n"
    "  - {id: c, effect: deny, tools: [Bash], when: {argv: [curl]}, because: x}\n"
    '  - {id: e, effect: deny, tools: [Read, Bash, Write], when: {path: ["**/.env"]}, because: x}\n',
    name="guarded",
)
TRUSTED: Final = load_policy("trusted")


def commands(data: bytes) -> None:
    """The engine on a shell command: twice the same, and never an allow of what holds a hidden character."""
    text = data.decode("utf-8", "surrogateescape")
    request = ToolRequest("Bash", {"command": text})
    decision = decide(request, GUARDED, Facts())
    assert decision == decide(request, GUARDED, Facts())
    if "\0" in text:
        assert decision.effect is Effect.DENY


def scripts(data: bytes) -> None:
    """The reader of shell scripts by itself."""
    try:
        read_script(data.decode("utf-8", "replace"))
    except BrokenScriptError:
        return


def files(data: bytes) -> None:
    """The engine on a path and on a pattern."""
    text = data.decode("utf-8", "surrogateescape")
    decide(ToolRequest("Read", {"file_path": text}), GUARDED, Facts())
    decide(ToolRequest("Glob", {"pattern": text}), GUARDED, Facts())
    decide(ToolRequest(text, {"x": text}), TRUSTED, Facts())


def documents(data: bytes) -> None:
    """The reader of policies."""
    try:
        parse_policy(data.decode("utf-8", "replace"), name="fuzzed")
    except PolicyError:
        return


def urls(data: bytes) -> None:
    """URLs, hosts and paths: what surely lies below a prefix may also do so."""
    text = data.decode("utf-8", "surrogateescape")
    for read in (url_host, parse_host_pattern):
        try:
            read(text)
        except HostError:
            continue
    if surely_lies_below(text, "/a/b"):
        assert may_lie_below(text, "/a/b")


def proxies(data: bytes) -> None:
    """What the egress proxy reads of a program's request and greeting."""
    text = data.decode("latin-1")
    readers: tuple[Callable[[], object], ...] = (
        lambda: connect_target(text),
        lambda: absolute_target(text),
        lambda: host_header_target(text, 443),
        lambda: server_name(data),
    )
    for read in readers:
        try:
            read()
        except EgressRefusedError:
            continue


TARGETS: Final = (commands, scripts, files, documents, urls, proxies)


def target(data: bytes) -> None:
    """One run."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], "-timeout=20", "-max_len=4096", "-rss_limit_mb=2048", *sys.argv[1:]], target)
    atheris.Fuzz()
