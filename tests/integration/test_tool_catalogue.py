"""The table of tools that policies rest upon, held against the tools that the bundled CLI really sends to the model."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from policies.catalogue import ALIASES, ALWAYS_ALLOWED, NEVER_OFFERED, OLD_NAMES, TOOLS, canonical_name
from policies.policy import offerable
from tests.sandboxes import bundled_cli

REFUSAL = json.dumps({"type": "error", "error": {"type": "permission_error", "message": "enough"}}).encode()
UNSUPPORTED = {"Agent": {"isolation"}}
"""Fields that the CLI offers and policies do not know on purpose: worktrees and remote machines leave the workspace."""


class Listener(http.server.BaseHTTPRequestHandler):
    """Takes one request to the model down and refuses it."""

    bodies: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(403)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(REFUSAL)

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def ask_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts the bundled CLI with a list of tools and gives the tools of its first model request."""
    home = tmp_path_factory.mktemp("home")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(tools: str) -> dict[str, dict[str, Any]]:
        Listener.bodies = []
        subprocess.run(
            [str(bundled_cli()), "-p", "--setting-sources=", "--strict-mcp-config", f"--tools={tools}", "hello"],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{server.server_port}",
                "ANTHROPIC_API_KEY": "none",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_AUTOUPDATER": "1",
                "ENABLE_TOOL_SEARCH": "false",
            },
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        found = [body["tools"] for body in Listener.bodies if body.get("tools")]
        assert found, "the CLI sent no request with tools"
        return {tool["name"]: tool.get("input_schema", {}) for tool in found[0]}

    try:
        yield ask
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_policies_know_every_tool_of_the_cli_and_every_field(ask_cli: Any) -> None:
    sent = ask_cli(",".join(offerable())) | ask_cli("default")
    unknown = {name for name in sent if canonical_name(name) not in TOOLS and name != "DeferredToolPlaceholder"}
    assert unknown == set(), "new tools: decide whether they may be offered"
    for name, schema in sent.items():
        tool = TOOLS.get(canonical_name(name))
        if tool is None or not tool.offered:
            continue
        fields = set(schema.get("properties", {})) - UNSUPPORTED.get(tool.name, set())
        assert fields == set(tool.fields), name
        assert set(tool.required) <= set(schema.get("required", ())), name


def test_every_tool_that_may_be_offered_exists_under_its_name(ask_cli: Any) -> None:
    sent = {canonical_name(name) for name in ask_cli(",".join(offerable()))}
    assert sent - {"DeferredToolPlaceholder"} == set(offerable())


def test_the_special_names_are_tools_of_the_table() -> None:
    assert (ALWAYS_ALLOWED | NEVER_OFFERED | OLD_NAMES | set(ALIASES.values())) <= set(TOOLS)
    assert not (ALWAYS_ALLOWED & NEVER_OFFERED)
