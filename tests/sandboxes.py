"""Sandboxes for tests: the real provider on this machine, with a socket in the gateway's place."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import anyio

from server.sandboxes.base import CLI, CONFIG_DIR, GATEWAY_SOCKET, Limits, SandboxSpec
from server.sandboxes.bubblewrap import BubblewrapProvider
from server.sandboxes.bubblewrap.sandbox import BubblewrapSandbox

AGENT_COMMAND: Final = [
    *(CLI, "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"),
    *("--setting-sources=", "--strict-mcp-config"),
]
"""The real CLI, waiting for requests."""

AGENT_VARIABLES: Final = {
    "CLAUDE_CONFIG_DIR": CONFIG_DIR,
    "ANTHROPIC_UNIX_SOCKET": GATEWAY_SOCKET,
    "ANTHROPIC_BASE_URL": "http://gateway",
    "ANTHROPIC_API_KEY": "token",
}
"""What it needs to come up without a model."""

PATIENCE_S: Final = 20.0
"""Longest that a test waits for something that takes milliseconds."""


def bundled_cli() -> Path:
    """The CLI that comes with the SDK, found without importing it."""
    spec = importlib.util.find_spec("claude_agent_sdk")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "_bundled" / "claude"


@contextmanager
def gateway_socket() -> Iterator[Path]:
    """A listening socket that any uid may connect to. Its path is short, because socket paths must be."""
    with tempfile.TemporaryDirectory(prefix="rookery-") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory) / "gateway.sock"
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        yield path


def spec_for(gateway: Path, limits: Limits | None = None) -> SandboxSpec:
    """A new session's sandbox."""
    return SandboxSpec(
        session_id=f"test-{secrets.token_hex(8)}", gateway_socket=gateway, limits=limits or Limits(processes=64)
    )


@asynccontextmanager
async def sandbox_in(home: Path, limits: Limits | None = None) -> AsyncIterator[BubblewrapSandbox]:
    """A bubblewrap sandbox in a home of its own, destroyed at the end."""
    with gateway_socket() as gateway:
        sandbox = await BubblewrapProvider(home, bundled_cli()).create(spec_for(gateway, limits))
        try:
            yield sandbox
        finally:
            await sandbox.destroy()


async def python(sandbox: BubblewrapSandbox, code: str, **options: Any) -> Any:
    """Run Python inside; what it printed as JSON."""
    result = await sandbox.run(["python3", "-c", code], **options)
    assert result.exit_code == 0, result.stderr.decode(errors="replace")
    return json.loads(result.stdout)


async def shell(sandbox: BubblewrapSandbox, script: str, **options: Any) -> str:
    """Run a shell script inside; its output, stripped."""
    result = await sandbox.run(["/bin/sh", "-c", script], **options)
    return (result.stdout + result.stderr).decode(errors="replace").strip()


def processes_of(reference: Mapping[str, Any]) -> list[int]:
    """All live processes of this machine that belong to a sandbox: by its uid, and by what is mounted for them.

    Without zombies: the namespace's first process is inherited, and reaped, by the first process of the machine.
    """
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                own_uid = reference["uid"] != os.geteuid() and path.stat().st_uid == reference["uid"]
                zombie = "\nState:\tZ" in (path / "status").read_text()
                if (own_uid and not zombie) or reference["id"] in (path / "mountinfo").read_text():
                    found.append(int(path.name))
    return found


async def until_gone(reference: Mapping[str, Any]) -> None:
    """Wait until no process of a sandbox is left; for ends that nobody waits for."""
    with anyio.fail_after(PATIENCE_S):
        while processes_of(reference):
            await anyio.sleep(0.01)
