"""``rookery serve`` as a process: both eras over stdio, hostile input, an end that leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from server.gateway.scripted import prompt_with
from tests.house import bash
from tests.surface import ERAS, EXIT_S, INITIALIZE, Era, ProgressLog, alive, answer_of, environment, serving

HOLD = prompt_with([bash("echo held > held; sleep 600")])
SAY = prompt_with([{"text": "said"}])

NOISY = """
import os, sys, threading, time
def noise():
    while True:
        print("a stray print", flush=True)
        os.write(1, b"a stray write\\n")
        os.system("echo a stray child")
        time.sleep(0.02)
import rookery.serving.stdio
served = rookery.serving.stdio._serve_wire
async def noisy(*arguments):
    threading.Thread(target=noise, daemon=True).start()
    await served(*arguments)
rookery.serving.stdio._serve_wire = noisy
from rookery.cli import main
sys.argv[1:] = ["serve"]
main()
"""


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_over_stdio_spawns_continues_and_leaves(tmp_path: Path, era: Era) -> None:
    server = StdioServerParameters(command=sys.executable, args=["-m", "rookery", "serve"], env=environment(tmp_path))
    progress = ProgressLog()
    with anyio.fail_after(60):
        async with Client(server, mode=era) as client:
            assert client.server_info is not None
            assert client.server_info.name == "rookery"
            outcome = answer_of(await client.call_tool("spawn_agent", {"prompt": SAY}, progress_callback=progress))
            assert outcome["text"] == "said"
            assert progress.numbers
            again = await client.call_tool("continue_session", {"session_id": outcome["session_id"], "prompt": SAY})
            assert answer_of(again)["turn"] == 2


def test_sessions_outlive_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        first.initialize()
        session_id = first.call(1, "spawn_agent", prompt=prompt_with([bash("echo kept > file"), {"text": "one"}]))[
            "session_id"
        ]
        first.close_input()
        assert first.wait() == 0
    with serving(tmp_path) as second:
        second.initialize()
        assert [one["session_id"] for one in second.call(1, "list_sessions")["sessions"]] == [session_id]
        prompt = prompt_with([bash("cat file"), {"reply_with": "conversation"}])
        outcome = second.call(2, "continue_session", session_id=session_id, prompt=prompt)
        assert "one" in outcome["text"]
        assert second.call(3, "read_file", session_id=session_id, path="file")["text"] == "kept\n"


def test_initialize_is_answered_before_anything_slow_is_imported(tmp_path: Path) -> None:
    with serving(tmp_path) as wire:
        assert "result" in wire.ask(0, "initialize", INITIALIZE)
        # The registry is not there yet, or just being made; the first call that needs it waits for it.
        wire.send("notifications/initialized")
        assert wire.call(1, "list_sessions") == {"sessions": [], "cursor": None}


def test_p01_hostile_lines_get_typed_errors_in_bounded_memory(tmp_path: Path) -> None:
    """P01: long lines, deep nesting, NaN, huge numbers, surrogates, invalid UTF-8; P02: null and float ids, batches."""
    with serving(tmp_path) as wire:
        wire.initialize()
        wire.call(1, "list_sessions")
        before = wire.memory_peak_kib()
        wire.send_line(b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"x":"' + b"x" * 50_000_000 + b'"}}')
        assert error_in(wire.receive(), request_id=7) == -32600
        assert wire.memory_peak_kib() - before < 64 << 10

        deep = b'{"jsonrpc":"2.0","id":8,"method":"ping","params":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
        lines: list[tuple[bytes, int | None, int]] = [
            (deep, 8, -32700),
            (b"{garbage", None, -32700),
            (b'{"jsonrpc":"2.0","id":9,"method":"\xff\xfe"}', 9, -32700),
            (b'{"jsonrpc":"2.0","id":10,"method":"tools/list","params":{"cursor":"\\ud800"}}', 10, -32700),
            (b'[{"jsonrpc":"2.0","id":11,"method":"ping"}]', None, -32600),
            (b'{"jsonrpc":"2.0","id":null,"method":"tools/list"}', None, -32600),
            (b'{"jsonrpc":"2.0","id":1.5,"method":"tools/list"}', None, -32600),
            (b'{"jsonrpc":"1.0","id":12,"method":"tools/list"}', None, -32600),
            (b'{"jsonrpc":"2.0","id":007,"method":"tools/list"}', None, -32700),
            (b'{"jsonrpc":"2.0","id":"\x01","method":"tools/list"}', None, -32700),
            (b'{"jsonrpc":"2.0","id":"\xff","method":"tools/list"}', None, -32700),
            (b'{"jsonrpc":"2.0","id":13,"method":"no/such/method"}', 13, -32601),
        ]
        for line, request_id, code in lines:
            wire.send_line(line)
            assert error_in(wire.receive(), request_id=request_id) == code

        wire.send_line(b"\r\n   \r\n")
        for number, value in enumerate((b"NaN", b"1e999", b"-Infinity", b"1" * 5_000), start=20):
            wire.send_line(
                b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"spawn_agent",'
                b'"arguments":{"prompt":"x","wait_s":%s}}}\r' % (number, value)
            )
            message = wire.receive()
            assert "error" in message or message["result"]["structuredContent"]["code"] == "invalid_argument"
        assert wire.call(30, "list_sessions")["sessions"] == []


def error_in(message: dict[str, Any], *, request_id: int | None) -> int:
    assert message["id"] == request_id
    return int(message["error"]["code"])


def test_p05_nothing_but_messages_reaches_stdout_whoever_prints(tmp_path: Path) -> None:
    """P05: prints, raw writes and children of the server itself, while it serves and while it ends."""
    with serving(tmp_path, command=[sys.executable, "-c", NOISY]) as wire:
        wire.initialize()
        assert wire.call(1, "spawn_agent", prompt=SAY)["text"] == "said"
        wire.close_input()
        assert wire.process.stdout is not None
        for line in wire.process.stdout:
            json.loads(line)


@pytest.mark.parametrize("end", ["input", "SIGTERM", "SIGINT"])
def test_the_server_leaves_in_time_with_its_agents_and_their_work_is_kept(tmp_path: Path, end: str) -> None:
    with serving(tmp_path) as wire:
        wire.initialize()
        session_id = wire.call(1, "spawn_agent", prompt=HOLD, wait_s=0)["session_id"]
        wait_for_file(tmp_path / "sandboxes" / session_id / "workspace" / "held")
        # A call in flight must not hold the server back.
        wire.send("tools/call", {"name": "wait_for_sessions", "arguments": {"session_ids": [session_id]}}, 2)
        family = wire.descendants()
        assert family
        started = time.monotonic()
        if end == "input":
            wire.close_input()
        else:
            wire.process.send_signal(signal.Signals[end])
        assert wire.wait() == 0
        assert time.monotonic() - started < EXIT_S
        assert not alive(family)
    with serving(tmp_path) as wire:
        wire.initialize()
        view = wire.call(1, "get_session", session_id=session_id)
        assert (view["outcome"]["state"], view["outcome"]["stop_reason"]) == ("idle", "interrupted")
        assert wire.call(2, "continue_session", session_id=session_id, prompt=SAY)["text"] == "said"


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, "the agent did not start its command"
        time.sleep(0.02)


def test_a_start_that_fails_is_a_typed_error_of_each_call_and_is_tried_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("a file stands where the home should be")
    with serving(home) as wire:
        wire.initialize()
        assert len(wire.ask(1, "tools/list")["result"]["tools"]) > 10
        for number in (2, 3):
            assert wire.call(number, "list_sessions")["code"] == "storage_unavailable"
        home.unlink()
        deadline = time.monotonic() + 30
        while "sessions" not in (answer := wire.call(4, "list_sessions")):
            assert answer["code"] == "storage_unavailable"
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_setting_out_of_bounds_is_named_and_nothing_is_served(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rookery", "serve"],
        env=environment(tmp_path, ROOKERY_MAX_SESSIONS="0"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "ROOKERY_MAX_SESSIONS" in done.stderr
    assert done.stdout == ""
