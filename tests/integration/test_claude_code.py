"""Delegation from agent to agent, with real programs on both sides: Claude Code is the client of ``rookery serve``.

The orchestrating Claude Code runs unsandboxed as a user's would; only both models are scripted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from rookery.provider import cli_path
from server.gateway.listener import loopback_listener
from server.gateway.scripted import prompt_with, serve_scripted
from tests.house import bash, settings_for
from tests.http import serving_http
from tests.integration.test_approvals import policy_dir
from tests.surface import environment


async def orchestrated(
    tmp_path: Path, server: dict[str, Any], steps: list[dict[str, Any]], settings: dict[str, Any] | None = None
) -> str:
    """What Claude Code says in the end that plays these steps with one MCP server named ``rookery``."""
    configuration = tmp_path / "mcp.json"
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
        f"--settings={json.dumps(settings or {})}",
    ]
    with anyio.fail_after(120):
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
    return str(result["result"])


def over_stdio(tmp_path: Path, **variables: str) -> dict[str, Any]:
    return {
        "command": sys.executable,
        "args": ["-m", "rookery", "serve"],
        "env": environment(tmp_path / "rookery", **variables),
    }


async def test_claude_code_spawns_an_agent_waits_for_it_and_reads_its_work(tmp_path: Path) -> None:
    inner = prompt_with([bash("echo the deep answer > answer.txt"), {"text": "the answer lies in answer.txt"}])
    steps: list[dict[str, Any]] = [
        {"tool": "mcp__rookery__spawn_agent", "input": {"prompt": inner, "title": "delegated"}},
        {"tool": "mcp__rookery__list_sessions", "input": {}},
        {"tool": "mcp__rookery__get_costs", "input": {"group_by": "session"}},
        {"reply_with": "tool_results"},
    ]
    said = await orchestrated(tmp_path, over_stdio(tmp_path), steps)
    assert "the answer lies in answer.txt" in said
    assert "delegated" in said
    workspace = next((tmp_path / "rookery" / "sandboxes").glob("*/workspace"))
    assert (workspace / "answer.txt").read_text() == "the deep answer\n"


@pytest.mark.parametrize("transport", [pytest.param("stdio", marks=pytest.mark.slow), "http"])
async def test_claude_code_answers_what_a_policy_asks(tmp_path: Path, transport: str) -> None:
    """Over stdio it speaks 2025-11-25 and is asked in the midst of the call, over HTTP 2026-07-28 and asked by its
    result. A hook answers in the person's place, and writes down what it was asked."""
    asked = tmp_path / "asked.json"
    answer = {"hookEventName": "Elicitation", "action": "accept", "content": {"decision": "allow"}}
    hook = tmp_path / "hook.sh"
    hook.write_text(f"#!/bin/sh\ncat >> {asked}\necho '{json.dumps({'hookSpecificOutput': answer})}'\n")
    hook.chmod(0o755)
    settings = {"hooks": {"Elicitation": [{"hooks": [{"type": "command", "command": str(hook)}]}]}}
    inner = prompt_with([bash("touch made"), {"text": "the file is made"}])
    steps: list[dict[str, Any]] = [
        {"tool": "mcp__rookery__spawn_agent", "input": {"prompt": inner, "policy": "asking"}},
        {"reply_with": "tool_results"},
    ]
    policies = {"ROOKERY_POLICY_DIR": str(policy_dir(tmp_path))}
    if transport == "stdio":
        said = await orchestrated(tmp_path, over_stdio(tmp_path, **policies), steps, settings)
    else:
        with serving_http(tmp_path / "rookery", **policies) as site:
            said = await orchestrated(tmp_path, {"type": "http", "url": site.url}, steps, settings)
    assert "the file is made" in said
    assert "touch made" in asked.read_text()
    workspace = next((tmp_path / "rookery" / "sandboxes").glob("*/workspace"))
    assert (workspace / "made").exists()
