"""Rookery's entry: how a client starts it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rookery.install.clients import Client

NAME: Final = "rookery"
"""What the server is called in the configuration of clients."""

TIMEOUT_MS: Final = 3_600_000
"""Claude Code's limit for a call, which it would else end earlier when it is silent; ours wait less by themselves."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def program() -> str:
    """The absolute path of this ``rookery``: programs with windows know nothing of a shell's ``PATH``."""
    started = Path(sys.argv[0])
    if started.name == "rookery" and started.is_file():
        return str(started.absolute())
    return shutil.which("rookery") or str(Path(sys.executable).with_name("rookery"))


def environment(assignments: Sequence[str]) -> dict[str, str]:
    """The variables of ``NAME=VALUE`` words.

    Raises:
        ValueError: one is not of that form.
    """
    variables: dict[str, str] = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or not _VARIABLE.fullmatch(name):
            raise ValueError("--env takes NAME=VALUE, as in --env ROOKERY_MODEL=claude-sonnet-4-5.")
        variables[name] = value
    return variables


def entry_for(client: Client, variables: dict[str, str]) -> dict[str, Any]:
    """The entry in the client's form."""
    entry: dict[str, Any] = {"command": program(), "args": ["connect"]}
    if client in (Client.CLAUDE_CODE, Client.VSCODE):
        entry = {"type": "stdio", **entry}
    if variables:
        entry["env"] = variables
    if client is Client.CLAUDE_CODE:
        entry["timeout"] = TIMEOUT_MS
    return entry
