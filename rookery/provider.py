"""Which sandboxes this server makes, and the agent CLI that runs in them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import SandboxProvider
from server.settings import SandboxKind, Settings


def make_provider(settings: Settings) -> SandboxProvider:
    """The sandbox provider that the settings name.

    Raises:
        RookeryError: ``sandbox_unavailable``: there is none of this kind. Never falls back to another.
    """
    if settings.sandbox is not SandboxKind.BUBBLEWRAP:
        raise RookeryError(
            ErrorCode.SANDBOX_UNAVAILABLE,
            f"This version makes no {settings.sandbox.value} sandboxes: set ROOKERY_SANDBOX=bubblewrap.",
        )
    from server.sandboxes.bubblewrap import BubblewrapProvider

    return BubblewrapProvider(settings.home, cli_path(settings))


def cli_path(settings: Settings) -> Path:
    """The Claude Code CLI: the setting's, else the one that the SDK brings. It may not exist; the provider checks."""
    if settings.cli_path is not None:
        return settings.cli_path
    # Looked up without importing the SDK, which takes half a second.
    found = importlib.util.find_spec("claude_agent_sdk")
    if found is None or found.origin is None:
        return Path("claude")
    return Path(found.origin).parent / "_bundled" / "claude"
