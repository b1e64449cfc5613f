"""The clients that are known: where each keeps its servers, and what it calls them.

Places and forms are those of the clients' own documentation as of November 2026.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Client(StrEnum):
    """A program that Rookery can be added to."""

    CLAUDE_CODE = "claude-code"
    CLAUDE_DESKTOP = "claude-desktop"
    VSCODE = "vscode"
    CURSOR = "cursor"


class Reach(StrEnum):
    """For whom the entry is: this user everywhere, or whoever works in the present directory."""

    USER = "user"
    PROJECT = "project"


@dataclass(frozen=True)
class Target:
    """A file that an entry belongs into.

    Args:
        path: the file; it need not exist.
        key: the member of its root object that holds the servers.
        afterwards: what the person does next.
    """

    path: Path
    key: str
    afterwards: str


def target_of(client: Client, reach: Reach, *, home: Path, here: Path) -> Target | None:
    """Where a client looks for its servers; None where its own program must be asked to write it.

    Args:
        home: the user's home directory.
        here: the present directory.

    Raises:
        ValueError: the client knows no such reach.
    """
    match client, reach:
        case Client.CLAUDE_CODE, Reach.USER:
            # ~/.claude.json holds much else and is written by every running Claude Code.
            return None
        case Client.CLAUDE_CODE, Reach.PROJECT:
            return Target(here / ".mcp.json", "mcpServers", "Start `claude` in this directory and approve the server.")
        case Client.CLAUDE_DESKTOP, Reach.USER:
            path = _applications(home) / "Claude" / "claude_desktop_config.json"
            return Target(path, "mcpServers", "Quit Claude Desktop and start it again.")
        case Client.VSCODE, Reach.USER:
            path = _applications(home) / "Code" / "User" / "mcp.json"
            return Target(path, "servers", "Run “MCP: List Servers” in VS Code and start rookery.")
        case Client.VSCODE, Reach.PROJECT:
            return Target(here / ".vscode" / "mcp.json", "servers", "Open this directory in VS Code and trust it.")
        case Client.CURSOR, Reach.USER:
            return Target(home / ".cursor" / "mcp.json", "mcpServers", "Look at Settings → MCP in Cursor.")
        case Client.CURSOR, Reach.PROJECT:
            return Target(here / ".cursor" / "mcp.json", "mcpServers", "Open this directory in Cursor.")
        case _:
            raise ValueError(f"{client} has no configuration for a project; leave --project away.")


def _applications(home: Path) -> Path:
    """Where programs with windows keep their configuration."""
    if sys.platform == "darwin":
        return home / "Library" / "Application Support"
    return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
