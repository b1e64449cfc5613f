"""The handle that tests have on the double, and the fixtures that give it.

The double runs in a process of its own: it outlives a server that a test kills, and takes no time of the test's loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2b_cloud import users
from tests.e2b_cloud.faults import Kind, Origin
from tests.sandboxes import bundled_cli

NEEDED = "the double needs root, or `newuidmap` with a range of users (Debian: apt install uidmap)"


class E2BCloud:
    """A running double."""

    def __init__(self, api_url: str, sandbox_url: str, administration_url: str, api_key: str) -> None:
        self.api_url = api_url
        """Origin of the control plane: ``E2B_API_URL``."""
        self.sandbox_url = sandbox_url
        """Origin of all sandboxes: ``E2B_SANDBOX_URL``."""
        self.api_key = api_key
        self.other_api_key = api_key.replace("d0", "d1")
        """Of another account."""
        self._administration_url = administration_url

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make the SDK, and Rookery, use it."""
        return {
            "E2B_API_URL": self.api_url,
            "E2B_SANDBOX_URL": self.sandbox_url,
            "E2B_API_KEY": self.api_key,
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._administration_url + path, data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    @property
    def state(self) -> dict[str, Any]:
        """All that it knows: sandboxes, ended, templates, requests, faults, lost."""
        found: dict[str, Any] = self._call("GET", "/state")
        return found

    @property
    def sandboxes(self) -> list[dict[str, Any]]:
        """All living sandboxes, running and paused, with their metadata, network, commands and tree."""
        found: list[dict[str, Any]] = self.state["sandboxes"]
        return found

    def sandbox(self, identity: str) -> dict[str, Any]:
        """One of them."""
        return next(one for one in self.sandboxes if one["sandboxID"] == identity)

    @property
    def requests(self) -> list[str]:
        """Every request since the last reset: ``origin METHOD /path``."""
        found: list[str] = self.state["requests"]
        return found

    def fault(self, origin: Origin, match: str, kind: Kind, **options: Any) -> None:
        """Make something go wrong; see :class:`tests.e2b_cloud.faults.Fault`."""
        self._call("POST", "/faults", {"origin": origin, "match": match, "kind": kind, **options})

    def struck(self) -> list[int]:
        """How many requests each fault struck."""
        return [fault["struck"] for fault in self.state["faults"]]

    def switch(self, **switches: Any) -> None:
        """Set ``half_restored``, ``wedged_subscribers`` or ``silent_pause``."""
        self._call("POST", "/switches", switches)

    def plan(self, **limits: Any) -> None:
        """Set the plan's ``concurrent``, ``per_second``, ``longest_s``."""
        self._call("POST", "/plan", limits)

    def clear_faults(self) -> None:
        """Nothing goes wrong any more."""
        self._call("DELETE", "/faults")

    def kill(self, identity: str) -> None:
        """A sandbox dies."""
        self._call("POST", f"/kill/{identity}")

    def drop_streams(self) -> None:
        """All open streams break off without an end."""
        self._call("POST", "/drop-streams")

    def reset(self) -> list[str]:
        """End everything; the sandboxes that still lived."""
        living: list[str] = self._call("POST", "/reset")
        return living


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
    if not users.available():
        pytest.skip(NEEDED)
    with running_cloud(bundled_cli()) as cloud:
        yield cloud


@pytest.fixture
def e2b_cloud(e2b_double: E2BCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[E2BCloud]:
    """The double, without faults, empty at the start; the test must leave no sandbox behind."""
    e2b_double.reset()
    for name in ("E2B_DEBUG", "E2B_DOMAIN", "E2B_ACCESS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    yield e2b_double
    leaked = e2b_double.reset()
    assert not leaked, f"the test left sandboxes behind: {leaked}"
