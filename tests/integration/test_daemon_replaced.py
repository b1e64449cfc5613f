"""What a client of `rookery connect` notices when its daemon dies, or is of another version: as little as can be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rookery.daemon import hello
from rookery.daemon.hello import question, read_line, write_line
from rookery.daemon.place import Place
from rookery.version import VERSION
from server.gateway.scripted import prompt_with
from tests.daemons import connecting, daemon_home, daemon_of
from tests.house import bash
from tests.surface import INITIALIZE, environment, serving

OTHER_VERSION = "0.0.1"
AS_OTHER = f"import rookery.version; rookery.version.VERSION = {OTHER_VERSION!r}; from rookery.cli import main; main()"
SETTINGS = {"ROOKERY_UPSTREAM": "scripted", "ROOKERY_WARM": "0"}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with daemon_home(tmp_path) as place:
        yield place


def test_a_client_outlives_its_daemon_and_hears_which_calls_were_lost(home: Path) -> None:
    with connecting(home) as wire:
        wire.initialize()
        endless = prompt_with([bash("touch begun; sleep 600")])
        session_id = wire.call(1, "spawn_agent", prompt=endless, wait_s=0)["session_id"]
        session = f"rookery://sessions/{session_id}"
        assert "result" in wire.ask(2, "resources/subscribe", {"uri": session})
        wire.send("tools/call", {"name": "wait_for_sessions", "arguments": {"session_ids": [session_id]}}, 3)
        begun = home / "sandboxes" / session_id / "workspace" / "begun"
        while not begun.exists():
            wire.call(4, "get_session", session_id=session_id)
        first = daemon_of(home)
        assert first is not None
        os.kill(first["pid"], signal.SIGKILL)

        while (lost := wire.receive()).get("id") != 3:
            assert "id" not in lost, lost
        # It names no tool: which ones this client was offered, only the daemon knew.
        assert "look whether it was done" in lost["error"]["message"]
        outcome = wire.call(5, "get_session", session_id=session_id)["outcome"]
        while outcome["state"] == "running":
            outcome = wire.call(5, "get_session", session_id=session_id)["outcome"]
        assert outcome["stop_reason"] == "interrupted"
        second = daemon_of(home)
        assert second is not None
        assert second["pid"] != first["pid"]

        # The new daemon knows what the client had agreed with the old one.
        wire.send(
            "tools/call",
            {"name": "continue_session", "arguments": {"session_id": session_id, "prompt": "hello", "wait_s": 50}},
            6,
        )
        told: list[dict[str, Any]] = []
        while (message := wire.receive()).get("id") != 6:
            told.append(message)
        assert message["result"]["structuredContent"]["stop_reason"] == "end_turn"
        assert {"uri": session} in [
            one["params"] for one in told if one.get("method") == "notifications/resources/updated"
        ]
        wire.close_input()
        assert wire.process.wait(30) == 0


def test_a_daemon_of_another_version_is_kept_while_in_use_and_makes_way_when_idle(home: Path) -> None:
    with other_daemon(home) as other:
        user = served_by_other(home)
        with connecting(home) as wire:
            refusal = wire.ask(0, "initialize", INITIALIZE)["error"]["message"]
            assert OTHER_VERSION in refusal
            assert "rookery daemon stop" in refusal
            assert wire.process.wait(10) == 1
        user.close()
        with connecting(home) as wire:
            wire.initialize()
            assert wire.call(1, "list_sessions")["sessions"] == []
            fresh = daemon_of(home)
            assert fresh is not None
            assert fresh["version"] == VERSION
        assert other.wait(30) == 0


@pytest.mark.slow
def test_a_client_that_was_updated_under_way_is_told_to_restart(home: Path) -> None:
    """Its code is older than what its daemon would be started from: without a word it would start them for ever."""
    with serving(home, command=[sys.executable, "-c", AS_OTHER, "connect"]) as wire:
        message = wire.ask(0, "initialize", INITIALIZE)["error"]["message"]
        assert OTHER_VERSION in message
        assert VERSION in message
        assert "Restart the client" in message
        assert wire.process.wait(30) == 1


@contextmanager
def other_daemon(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon of another version."""
    command = [sys.executable, "-c", AS_OTHER, "daemon", "run"]
    with subprocess.Popen(command, env=environment(home), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def served_by_other(home: Path) -> Any:
    """A connection of a client that the other daemon serves."""
    place = Place(home)
    connection = place.connect()
    place.close()
    assert connection is not None
    write_line(connection, {**question("serve"), "rookery": OTHER_VERSION, "settings": hello.fingerprints(SETTINGS)})
    assert read_line(connection) == {"serves": True}
    return connection
