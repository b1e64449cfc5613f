"""Clients of the other world: the TypeScript SDK in both eras and over both transports, and the Inspector's command
line. They are installed by npm into the folder of the conformance suite, which git ignores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from server.gateway.scripted import prompt_with
from tests.conformance.protocol.run import FOLDER, NODE
from tests.house import bash
from tests.http import serving_http
from tests.integration.test_approvals import policy_dir
from tests.surface import environment
from tools.toolsets import TOOLS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm"),
]

PACKAGES = ("@modelcontextprotocol/client@2.4.0", "@modelcontextprotocol/inspector@2.12.0", NODE)
ASKING = {"prompt": prompt_with([bash("touch made"), {"text": "the file is made"}]), "policy": "asking"}


@pytest.fixture(scope="module")
def clients() -> Path:
    """Where they are installed."""
    folder = FOLDER / "clients"
    marker = folder / "installed"
    if not marker.exists() or marker.read_text() != " ".join(PACKAGES):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *PACKAGES]
        subprocess.run(command, cwd=folder, check=True, timeout=600)
        marker.write_text(" ".join(PACKAGES))
    shutil.copy(Path(__file__).with_name("typescript_client.mjs"), folder)
    return folder


@contextmanager
def reached(tmp_path: Path, transport: str) -> Iterator[dict[str, Any]]:
    """How a client finds the server."""
    variables = {"ROOKERY_POLICY_DIR": str(policy_dir(tmp_path))}
    if transport == "http":
        with serving_http(tmp_path / "home", **variables) as site:
            yield {"url": site.url}
    else:
        env = environment(tmp_path / "home", **variables)
        yield {"command": sys.executable, "args": ["-m", "rookery", "serve"], "env": env}


def node(clients: Path, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [clients / "node_modules/.bin/node", *arguments],
        cwd=clients,
        env={"PATH": os.environ["PATH"], "HOME": str(clients), **variables},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("transport", ["stdio", "http"])
@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
def test_the_typescript_client_calls_is_asked_and_hears_of_progress(
    clients: Path, tmp_path: Path, era: str, transport: str
) -> None:
    with reached(tmp_path, transport) as way:
        given = {**way, "era": era, "call": {"name": "spawn_agent", "arguments": ASKING}}
        seen = json.loads(node(clients, "typescript_client.mjs", json.dumps(given)))
    assert seen["tools"] == [tool.name for tool in TOOLS]
    outcome = seen["result"]["structuredContent"]
    assert (outcome["state"], outcome["text"], outcome["changed_files"]) == ("idle", "the file is made", ["made"])
    assert len(seen["asked"]) == 1
    assert "touch made" in seen["asked"][0]
    assert seen["reports"] >= 1
    assert seen["failed"]["isError"]
    assert seen["failed"]["structuredContent"]["code"] == "session_not_found"


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_the_inspector_finds_no_fault_with_the_tools_and_calls_one(
    clients: Path, tmp_path: Path, transport: str, era: str
) -> None:
    def inspect(way: dict[str, Any], *arguments: str) -> dict[str, Any]:
        target = [way["url"], "--transport", "http"] if "url" in way else [way["command"], *way["args"]]
        for name, value in way.get("env", {}).items():
            target += ["-e", f"{name}={value}"]
        said = node(
            clients,
            "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js",
            "--cli",
            *target,
            "--protocol-era",
            era,
            "--format",
            "json",
            "-q",
            "--connect-timeout=60000",
            *arguments,
            MCP_CATALOG_PATH=str(tmp_path / "catalog.json"),
        )
        return cast(dict[str, Any], json.loads(said))

    with reached(tmp_path, transport) as way:
        listed = inspect(way, "--method", "tools/list", "--strict")
        called = inspect(
            way,
            "--method",
            "tools/call",
            "--tool-name",
            "spawn_agent",
            "--tool-arg",
            f"prompt={prompt_with([{'text': 'inspected'}])}",
        )
    assert [tool["name"] for tool in listed["result"]["tools"]] == [tool.name for tool in TOOLS]
    assert called["result"]["structuredContent"]["text"] == "inspected"
