"""Delegation from agent to agent, with real programs on both sides: Claude Code is the client of ``rookery serve``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio

from rookery.provider import cli_path
from server.gateway.listener import loopback_listener
from server.gateway.scripted import prompt_with, serve_scripted
from tests.house import bash, settings_for
from tests.surface import environment


async def test_claude_code_spawns_an_agent_waits_for_it_and_reads_its_work(tmp_path: Path) -> None:
    """The orchestrating Claude Code runs unsandboxed as a user's would; only both models are scripted."""
    inner = prompt_with([bash("echo the deep answer > answer.txt"), {"text": "the answer lies in answer.txt"}])
    steps: list[dict[str, Any]] = [
        {"tool": "mcp__rookery__spawn_agent", "input": {"prompt": inner, "title": "delegated"}},
        {"tool": "mcp__rookery__list_sessions", "input": {}},
        {"tool": "mcp__rookery__get_costs", "input": {"group_by": "session"}},
        {"reply_with": "tool_results"},
    ]
    configuration = tmp_path / "mcp.json"
    server = {
        "command": sys.executable,
        "args": ["-m", "rookery", "serve"],
        "env": environment(tmp_path / "rookery"),
    }
    configuration.write_text(json.dumps({"mcpServers": {"rookery": server}}))
    listener = loopback_listener()
    port = listener.getsockname()[1]
    (tmp_path / "home").mkdir()
    command = [
        str(cli_path(settings_for(tmp_path))),
        "--print",
        "--output-format=json",
        f"--mcp-config={configuration}",
        "--strict-mcp-config",
        "--allowedTools=mcp__rookery",
        "--setting-sources=",
    ]
    with anyio.fail_after(90):
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_scripted, listener)
            done = await anyio.run_process(
                command,
                input=prompt_with(steps).encode(),
                cwd=tmp_path / "home",
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(tmp_path / "home"),
                    "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
                    "ANTHROPIC_API_KEY": "sk-ant-test",
                    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                },
                check=False,
            )
            tasks.cancel_scope.cancel()
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    result = json.loads(done.stdout)
    assert not result["is_error"]
    said = result["result"]
    assert "the answer lies in answer.txt" in said
    assert "answer.txt" in said
    assert "delegated" in said
    workspace = next((tmp_path / "rookery" / "sandboxes").glob("*/workspace"))
    assert (workspace / "answer.txt").read_text() == "the deep answer\n"
