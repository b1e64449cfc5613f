"""Running tests as a user without rights, from tests that root runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from server.sandboxes.bubblewrap.identity import choose_identity, identity_range

ROOT: Final = Path(__file__).parents[1]

LONGEST_S: Final = 300.0

PYTHONS: Final = (sys.executable, "/usr/bin/python3")
"""Root's own may lie where nobody else can go."""

TRIAL: Final = (
    "import sys, claude_agent_sdk, pydantic_core, pytest, server.settings; "
    f"assert sys.version_info[:2] == {sys.version_info[:2]}"
)


class OrdinaryUser:
    """A user of this machine that has nothing but a home.

    Args:
        uid: its number, which is its group's too.
        home: its home.
        python: a Python that it can run, with all that this one has installed.
    """

    def __init__(self, uid: int, home: Path, python: str) -> None:
        self._uid = uid
        self._home = home
        self._python = python

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run this Python as the user."""
        return self._run(self._python, *arguments)

    def test(self, *tests: str) -> None:
        """Run tests as the user; all of them must be run, and pass."""
        base = ("--basetemp", str(self._home / "t"), "-p", "no:cacheprovider")
        done = self.run("-m", "pytest", "-q", *base, *tests)
        assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
        assert "skipped" not in done.stdout, done.stdout

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        installed = [path for path in sys.path if path.endswith("site-packages")]
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self._home),
            "USER": "ordinary",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *installed]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            command,
            cwd=ROOT,
            env=variables,
            user=self._uid,
            group=self._uid,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )

    def lacks(self) -> str | None:
        """Why it cannot run these tests on this machine; None where it can."""
        try:
            trial = self.run("-c", TRIAL)
        except OSError as error:
            return f"cannot run {self._python} ({error.strerror})"
        if trial.returncode != 0:
            return f"cannot use {self._python}: {trial.stderr.strip().splitlines()[-1]}"
        sandbox = self._run("bwrap", "--unshare-all", "--ro-bind", "/", "/", "true")
        return f"cannot make a sandbox: {sandbox.stderr.strip()}" if sandbox.returncode != 0 else None


@contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """A user for as long as the block lasts. Skips the test, and says why, where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("not root: all tests run as an ordinary user already")
    allowed = identity_range()
    if allowed is None:
        pytest.skip("root of this user namespace has no other uid to give away")
    uid = choose_identity(allowed, ())
    # Not below pytest's directory, which is root's alone.
    home = Path(tempfile.mkdtemp(prefix="rookery-user-"))
    try:
        os.chown(home, uid, uid)
        users = [OrdinaryUser(uid, home, python) for python in dict.fromkeys(PYTHONS)]
        faults = [user.lacks() for user in users]
        if all(faults):
            pytest.skip(f"an ordinary user {'; and '.join(map(str, faults))}")
        yield users[faults.index(None)]
    finally:
        shutil.rmtree(home)
