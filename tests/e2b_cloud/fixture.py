"""The fixtures that give tests the double, or the real cloud in its place.

The double runs in a process of its own: it outlives a server that a test kills, and takes no time of the test's loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2b_cloud import users
from tests.e2b_cloud.handle import E2BCloud
from tests.e2b_cloud.live import LiveCloud, is_live
from tests.sandboxes import bundled_cli

NEEDED = "the double needs root, or `newuidmap` with a range of users (Debian: apt install uidmap)"


@contextmanager
def running_cloud(cli: Path | None) -> Iterator[E2BCloud]:
    """A double for as long as this lasts."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.e2b_cloud", *(["--cli", str(cli)] if cli else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the double did not start"
        yield E2BCloud(**json.loads(line))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def e2b_double() -> Iterator[E2BCloud]:
    """One double for all tests of a run."""
    if is_live():
        yield LiveCloud()
        return
    if not users.available():
        pytest.skip(NEEDED)
    with running_cloud(bundled_cli()) as cloud:
        yield cloud


@pytest.fixture
def e2b_cloud(e2b_double: E2BCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[E2BCloud]:
    """The double, without faults, empty at the start; the test must leave no sandbox behind."""
    e2b_double.reset()
    if not e2b_double.live:
        for name in ("E2B_DEBUG", "E2B_DOMAIN", "E2B_ACCESS_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    yield e2b_double
    leaked = e2b_double.reset()
    assert not leaked, f"the test left sandboxes behind: {leaked}"
