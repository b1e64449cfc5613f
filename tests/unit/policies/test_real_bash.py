"""The reading of scripts held against the real bash: what counts as proved is what bash runs, word for word."""

from __future__ import annotations

import itertools
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from policies.shell.script import BrokenScriptError, Script
from policies.shell.syntax import read_script

PROGRAMS = ("prog", "tool", "x1", "test", "[")
RECORDER = """#!/bin/sh
printf '%s\\036' "${0##*/}" "$@" "" >> "$RECORD"
"""
_RUNS = itertools.count()
BASH = shutil.which("bash") or ""

pytestmark = pytest.mark.skipif(not BASH, reason="needs bash")


def _as_read(made: list[str]) -> list[str]:
    """Brackets are another way to write ``test``."""
    return ["test", *made[1:-1]] if made[0] == "[" and made[-1] == "]" else made


@dataclass(frozen=True)
class Bench:
    """Programs that write down how they were called, and an empty directory to call them in."""

    root: Path

    def run(self, script: str) -> list[list[str]]:
        """The calls that bash makes of a script, in order."""
        # A file of its own: a background job of an earlier script may still be writing.
        record = self.root / f"record-{next(_RUNS)}"
        record.touch()
        subprocess.run(
            # Without these two of its own, so that what they are given is written down too.
            [BASH, "--norc", "--noprofile", "-c", f"enable -n test [\n{script}"],
            env={"PATH": str(self.root / "bin"), "RECORD": str(record), "HOME": str(self.root), "LC_ALL": "C.UTF-8"},
            cwd=self.root / "empty",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=20,
            check=False,
        )
        calls = record.read_text().split("\x1e\x1d\x1e")[:-1]
        return [_as_read(made.split("\x1e")) for made in calls]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = tmp_path_factory.mktemp("bash")
    (root / "bin").mkdir()
    (root / "empty").mkdir()
    for name in PROGRAMS:
        path = root / "bin" / name
        path.write_text(RECORDER)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Bench(root)


PIECES = (
    *("prog", "tool", "x1", " ", " ", " ", "  ", "\t", "a", "b", "-x", "--long=v", "'", '"', "\\", "\\\n", "\n", ";"),
    *(
        "&&",
        "||",
        "|",
        "#",
        "#c",
        "=",
        "A=1",
        "{",
        "}",
        "{a,b}",
        "(",
        ")",
        "!",
        "$",
        "$'a'",
        '$"b"',
        "`",
        "~",
        "*",
        "?",
    ),
    *("?", "[a]", "é", "'a b'", '"c d"', "\\ ", "\\'", '\\"', "2>", ">", "/dev/null", "<<E\nx\nE\n", "\u00a0", ","),
    *("..", "1", "%", "^", "@", "if true; then prog; fi", "for i in 1 2; do tool; done", "time", "&", "|&", "prog a"),
    *(
        "tool 'b'",
        "; prog ",
        " && x1 ",
        "[",
        "]",
        "[[",
        "]]",
        "[ -f ",
        " ] && ",
        "-eq",
        "!=",
        "; [ ! -e 'a b' ] && tool",
    ),
)


def read_or_none(script: str) -> Script | None:
    try:
        return read_script(script)
    except BrokenScriptError:
        return None


scripts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map(lambda pieces: f"prog {''.join(pieces)}")


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=scripts)
def test_a_proved_script_runs_exactly_the_words_that_were_read(bench: Bench, script: str) -> None:
    compare(bench, script)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=scripts)
def test_many_proved_scripts_run_exactly_the_words_that_were_read(bench: Bench, script: str) -> None:
    compare(bench, script)


def compare(bench: Bench, script: str) -> None:
    """Hold the reading of a script, if it is proved, against what bash runs."""
    read = read_or_none(script)
    assume(read is not None and not read.doubts)
    assert read is not None
    # What a pattern stands for is not claimed to be known; a tilde is the home, which is read elsewhere.
    assume(all(word.known and not word.tilde for command in read.commands for word in command.words))
    # Whether and how often a command runs depends on the results of others; its words never do.
    words = {tuple(word.text for word in command.words) for command in read.commands if command.words}
    for made in map(tuple, bench.run(script)):
        # Bash takes its keyword "time" off, which is a wrapper to the engine.
        assert any(made in (known, known[1:]) for known in words), (script, made, words)


SCRIPTS = (
    "prog a b",
    "prog 'a b' \"c d\" e\\ f",
    "prog a\"b\"'c'd",
    "prog a && tool b; x1 c",
    "prog a\ntool b\n# comment\nx1 c",
    "prog a \\\n  b",
    "prog --x='y z'",
    "prog > /dev/null a",
    "prog 2>/dev/null a 2>&1",
    "{ prog a; tool b; }",
    "(prog a; tool b)",
    "! prog a",
    "if prog a; then tool b; fi",
    "for i in 1; do prog a; done",
    "prog a | tool b",
    "prog <<'E'\ntool x\nE\ntool b",
    "prog <<-E\n\ttool x\n\tE\ntool b",
    "prog <<E && tool b\nbody\nE",
    "A=1 prog a",
    'prog "" a',
    'prog "a\\"b\\\\c" d',
    "prog a#b",
    "prog {} a",
    "prog 'a\nb'",
    "[ -f a ] && prog a",
    "[ ! -e 'a b' ] && tool",
    'if [ a != "b c" -a -d x ]; then prog a; fi',
    "test -n a; prog b",
    "[ 1 -lt 2 ] > /dev/null; prog a",
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_plain_scripts_are_proved_and_read_as_bash_runs_them(bench: Bench, script: str) -> None:
    read = read_script(script)
    assert read.doubts == ()
    expected = sorted([word.text for word in command.words] for command in read.commands if command.words)
    assert sorted(bench.run(script)) == expected
