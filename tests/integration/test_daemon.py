"""The shared daemon behind `rookery connect`: one for all clients of a home, found, started and replaced by rule."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rookery.daemon import hello
from rookery.daemon.hello import differing, question, read_line, write_line
from rookery.daemon.place import SOCKET, Place
from server.gateway.scripted import prompt_with
from tests.daemons import connecting, daemon_home, daemon_of, gone
from tests.house import bash
from tests.surface import INITIALIZE, alive
from tools.toolsets import TOOLS

WAITING = "echo begun > begun; until [ -e go ]; do sleep 0.05; done; echo done > done"
SLOW = prompt_with([bash(WAITING), {"text": "finished"}])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    # Longer than the path of a socket may be.
    with daemon_home(tmp_path / ("long" * 40)) as place:
        yield place


def test_a_client_is_killed_in_mid_turn_and_another_gets_the_outcome(home: Path) -> None:
    with connecting(home) as first:
        first.initialize()
        session_id = first.call(1, "spawn_agent", prompt=SLOW, wait_s=0)["session_id"]
        first.send("tools/call", {"name": "wait_for_sessions", "arguments": {"session_ids": [session_id]}}, 2)
        workspace = home / "sandboxes" / session_id / "workspace"
        with connecting(home) as watcher:
            watcher.initialize()
            while not (workspace / "begun").exists():
                watcher.call(1, "get_session", session_id=session_id)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(10)
    running = daemon_of(home)
    assert running is not None
    assert running["working"] == 1
    (workspace / "go").touch()
    with connecting(home) as second:
        second.initialize()
        outcome = second.call(1, "wait_for_sessions", session_ids=[session_id], wait_s=50)["outcomes"][0]
        assert (outcome["state"], outcome["stop_reason"], outcome["text"]) == ("idle", "end_turn", "finished")
        assert second.call(2, "read_file", session_id=session_id, path="done")["text"] == "done\n"


def test_shims_that_start_at_once_share_one_daemon_and_lose_no_call(home: Path) -> None:
    """Also where a dead daemon left its socket."""
    (home / "daemon").mkdir(parents=True, mode=0o755)
    place = Place(home)
    place.listen().close()
    place.close()
    answers: list[dict[str, object]] = []

    def one() -> None:
        with connecting(home) as wire:
            wire.initialize()
            answers.append(wire.call(1, "list_sessions"))

    clients = [threading.Thread(target=one) for _ in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(90)
    assert answers == [{"sessions": [], "cursor": None}] * 4
    assert stat.S_IMODE((home / "daemon").stat().st_mode) == 0o700
    running = daemon_of(home)
    assert running is not None

    # One that is killed leaves its socket too: the next client gets another.
    os.kill(running["pid"], signal.SIGKILL)
    gone(running["pid"])
    assert (home / "daemon" / SOCKET).exists()
    with connecting(home) as wire:
        wire.initialize()
        assert wire.call(1, "list_sessions")["sessions"] == []
        second = daemon_of(home)
        assert second is not None
        assert second["pid"] != running["pid"]
        assert second["clients"] == 1


def test_clients_of_one_daemon_are_offered_the_tools_that_each_asks_for(home: Path) -> None:
    def offered(**variables: str) -> set[str]:
        with connecting(home, **variables) as wire:
            wire.initialize()
            return {tool["name"] for tool in wire.ask(1, "tools/list")["result"]["tools"]}

    with connecting(home, ROOKERY_TOOLSETS="simple", ROOKERY_READ_ONLY="false") as first:
        first.initialize()
        assert {tool["name"] for tool in first.ask(1, "tools/list")["result"]["tools"]} == {"run_agent", "reply"}
        daemon = daemon_of(home)
        assert offered() == {tool.name for tool in TOOLS}
        assert offered(ROOKERY_READ_ONLY="1") == {tool.name for tool in TOOLS if tool.read_only}
        for wrong in ({"ROOKERY_TOOLSETS": "teapots"}, {"ROOKERY_READ_ONLY": "perhaps"}):
            with connecting(home, **wrong) as wire:
                message = wire.ask(0, "initialize", INITIALIZE)["error"]["message"]
                assert wire.process.wait(10) == 1
            assert "teapots" in message or "true or false" in message
        assert daemon is not None
        assert (daemon_of(home) or {})["pid"] == daemon["pid"]


def test_p02_a_shim_carries_on_after_ids_that_are_none(home: Path) -> None:
    """P02: ids that no message may have end neither the shim nor the requests that follow."""
    nested = "[" * 100_000
    with connecting(home) as wire:
        wire.initialize()
        for id_of_cancelled in ("[]", "{}", "null", "1.5"):
            parameters = f'{{"requestId":{id_of_cancelled}}}'
            line = f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{parameters}}}'
            wire.send_line(line.encode())
        wire.send_line(b'{"jsonrpc":"2.0","method":"notifications/cancelled"}')
        for id_of_answer in (f'"{nested}"', "[]", "{}", "null", "7", '"[1]"'):
            wire.send_line(f'{{"jsonrpc":"2.0","id":{id_of_answer},"result":{{}}}}'.encode())
        assert wire.call(1, "list_sessions")["sessions"] == []


@pytest.mark.slow
def test_a_daemon_with_other_settings_makes_way_when_idle_and_is_kept_while_in_use(home: Path) -> None:
    with connecting(home) as first:
        first.initialize()
        running = daemon_of(home)
        assert running is not None
        with connecting(home, ROOKERY_MODEL="claude-other") as other:
            refusal = other.ask(0, "initialize", INITIALIZE)["error"]["message"]
            assert "ROOKERY_MODEL" in refusal
            assert "rookery daemon stop" in refusal
            assert other.process.wait(10) == 1
        # A credential that the daemon does not have is another setting; a log level is not.
        with connecting(home, ANTHROPIC_API_KEY="sk-ant-canary") as keyed:
            answer = keyed.ask(0, "initialize", INITIALIZE)["error"]["message"]
            assert "ANTHROPIC_API_KEY" in answer
            assert "canary" not in answer
        with connecting(home, ROOKERY_LOG_LEVEL="error") as quiet:
            quiet.initialize()
        first.call(1, "list_sessions")
    with connecting(home, ROOKERY_MODEL="claude-other") as other:
        other.initialize()
        assert other.call(1, "list_sessions")["sessions"] == []
        fresh = daemon_of(home)
        assert fresh is not None
        assert fresh["pid"] != running["pid"]
        gone(running["pid"])


@pytest.mark.slow
def test_a_daemon_leaves_when_its_last_session_sleeps_and_not_before(home: Path) -> None:
    quick = {"ROOKERY_DAEMON_IDLE_S": "0.2", "ROOKERY_IDLE_S": "2"}
    with connecting(home, **quick) as wire:
        wire.initialize()
        session_id = wire.call(1, "spawn_agent", prompt=SLOW, wait_s=0)["session_id"]
    running = daemon_of(home)
    assert running is not None
    workspace = home / "sandboxes" / session_id / "workspace"
    while not (workspace / "begun").exists():
        assert alive({running["pid"]})
    (workspace / "go").touch()
    gone(running["pid"])
    assert (workspace / "done").exists()
    assert not (home / "daemon" / SOCKET).exists()


@pytest.mark.slow
def test_p01_what_one_connection_sends_the_others_do_not_notice(home: Path) -> None:
    """P01, P11: garbage before the greeting, a line of 50 MB, a client that reads nothing, one that goes midway."""
    with connecting(home) as good:
        good.initialize()
        place = Place(home)
        strangers = []
        for noise in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"[]\n",
            b'{"want":7}\n',
            b"\xff" * 100_000,
            b'{"want":"serve"',
            b'{"want":"serve","settings":7}\n',
            b"[" * 60_000 + b"\n",
            b"",
        ):
            stranger = place.connect()
            assert stranger is not None
            stranger.sendall(noise)
            strangers.append(stranger)
        deaf = greeted(place)
        asking = b'{"jsonrpc":"2.0","id":%d,"method":"tools/list"}\n'
        deaf.setblocking(False)
        with pytest.raises(BlockingIOError):
            for number in range(1_000_000):
                deaf.sendall(asking % number)
        with connecting(home) as long:
            long.initialize()
            long.send_line(
                b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"x":"' + b"x" * 50_000_000 + b'"}}'
            )
            assert long.receive()["error"]["code"] == -32600
            long.process.kill()
        assert good.call(1, "list_sessions")["sessions"] == []
        for stranger in (*strangers, deaf):
            stranger.close()
        place.close()
        assert good.call(2, "list_sessions")["sessions"] == []


def greeted(place: Place) -> socket.socket:
    """A connection that the daemon serves; the environment of the tests is not that of the daemon."""
    connection = place.connect()
    assert connection is not None
    settings = hello.fingerprints({"ROOKERY_UPSTREAM": "scripted", "ROOKERY_WARM": "0"})
    write_line(connection, {**question("serve"), "settings": settings})
    assert read_line(connection) == {"serves": True}
    return connection


@pytest.mark.slow
def test_a_daemon_that_cannot_start_tells_its_client_why(home: Path) -> None:
    with connecting(home, ROOKERY_MAX_SESSIONS="0") as wire:
        assert "ROOKERY_MAX_SESSIONS" in wire.ask(0, "initialize", INITIALIZE)["error"]["message"]
        assert wire.process.wait(10) == 1


def test_a_client_without_a_credential_uses_the_daemons_and_no_other_difference_passes() -> None:
    daemon = hello.fingerprints({"ROOKERY_MODEL": "a", "ANTHROPIC_API_KEY": "k", "PATH": "/bin", "ROOKERY_HOME": "/h"})
    assert "k" not in daemon.values()
    assert differing(daemon, hello.fingerprints({"rookery_model": "a"})) == []
    assert differing(daemon, hello.fingerprints({"ROOKERY_MODEL": "a", "ANTHROPIC_API_KEY": "other"})) == [
        "ANTHROPIC_API_KEY"
    ]
    assert differing(daemon, {}) == ["ROOKERY_MODEL"]
    assert differing({}, daemon) == ["ANTHROPIC_API_KEY", "ROOKERY_MODEL"]
    assert differing(daemon, hello.fingerprints({"ROOKERY_MODEL": "a", "ROOKERY_POLICY": ""})) == []
