"""Helpers for tests over HTTP: the server as a process, on a port that it chose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import httpx2

from tests.surface import INITIALIZE, Wire, environment, serving

ACCEPT: Final = {"accept": "application/json, text/event-stream"}

PROTOCOL: Final = "2026-07-28"


@dataclass(frozen=True)
class Site:
    """A server over HTTP."""

    url: str
    """Of the MCP endpoint."""
    wire: Wire

    @property
    def root(self) -> str:
        return self.url.removesuffix("/mcp")

    @property
    def port(self) -> int:
        return int(self.root.rpartition(":")[2])


@contextmanager
def serving_http(home: Path, address: str = "127.0.0.1:0", **variables: str) -> Iterator[Site]:
    """`rookery serve --http` as a process, once clients can connect."""
    command = [sys.executable, "-m", "rookery", "serve", "--http", address]
    with serving(home, command=command, **variables) as wire:
        assert wire.process.stderr is not None
        while "serves MCP at" not in (line := wire.process.stderr.readline().decode()):
            assert line, "the server left before it served"
        yield Site(line.split()[-1], wire)


def refused(home: Path, address: str, **variables: str) -> str:
    """What a server says that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "rookery", "serve", "--http", address],
        env=environment(home, **variables),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    return done.stderr


def initialize(request_id: Any = 1) -> dict[str, Any]:
    """The opening message of the older era."""
    return {"jsonrpc": "2.0", "id": request_id, "method": "initialize", "params": INITIALIZE}


def post(site: Site, message: Any, **headers: str) -> httpx2.Response:
    """Send one message to the MCP endpoint."""
    with httpx2.Client(trust_env=False, timeout=30) as client:
        return client.post(site.url, json=message, headers={**ACCEPT, **headers})


def call(site: Site, tool: str, arguments: Mapping[str, Any], **headers: str) -> dict[str, Any]:
    """A tool's structured answer in the newer era, be it a result or an error."""
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": tool,
            "arguments": dict(arguments),
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": PROTOCOL,
                "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        },
    }
    routing = {"mcp-protocol-version": PROTOCOL, "mcp-method": "tools/call", "mcp-name": tool}
    response = post(site, message, **routing, **headers)
    assert response.status_code == 200, response.text
    return cast(dict[str, Any], response.json()["result"]["structuredContent"])
