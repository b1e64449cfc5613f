"""The first line of each connection to the daemon, and its answer. Standard library only.

A connection begins with one line of JSON that says what is wanted and by whom: the version of the code and what the
settings are. The daemon answers with one line; when it agrees, MCP's own lines follow.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from typing import Any, Final

from rookery.version import VERSION

MAX_LINE: Final = 65_536
"""Longest of these lines."""

CREDENTIALS: Final = frozenset(
    {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "E2B_API_KEY", "E2B_ACCESS_TOKEN"}
)
"""Variables that one client has and another may lack: who brings none uses the daemon's."""

OFFER: Final = frozenset({"ROOKERY_TOOLSETS", "ROOKERY_READ_ONLY"})
"""Variables that say which tools this one client is offered."""

_OWN: Final = OFFER | {"ROOKERY_HOME", "ROOKERY_LOG_LEVEL"}
"""Variables in which a client may differ: the home is how the daemon was found, and a log is nobody's result."""


def fingerprints(variables: Mapping[str, str]) -> dict[str, str]:
    """The settings of an environment, each as a hash: enough to compare them, and no secret crosses the socket."""
    found = {}
    for name, value in variables.items():
        name = name.upper()
        counts = name.startswith(("ROOKERY_", "E2B_")) or name in CREDENTIALS or name == "ANTHROPIC_BASE_URL"
        if counts and value and name not in _OWN:
            found[name] = hashlib.sha256(f"{name}={value}".encode("utf-8", "surrogateescape")).hexdigest()
    return found


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Names of the settings in which a client differs from the daemon (``ours``), so that it must not be served."""
    names = ours.keys() | theirs.keys()
    return sorted(
        name
        for name in names
        if ours.get(name) != theirs.get(name) and not (name in CREDENTIALS and name not in theirs)
    )


def question(want: str) -> dict[str, Any]:
    """What a client says: ``want`` is ``serve``, ``status`` or ``stop``."""
    offer = {name.upper(): value for name, value in os.environ.items() if name.upper() in OFFER and value}
    return {"rookery": VERSION, "want": want, "settings": fingerprints(os.environ), "offer": offer}


def write_line(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one line."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def read_line(connection: socket.socket) -> dict[str, Any] | None:
    """The other side's line, and not a byte more; None when it closed instead.

    Raises:
        ValueError: it is no such line.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) > MAX_LINE:
            raise ValueError("the line is too long")
        try:
            # What follows belongs to another protocol, so it is looked at before it is taken.
            seen = connection.recv(4096, socket.MSG_PEEK)
        except ConnectionResetError:
            return None
        if not seen:
            return None
        end = seen.find(b"\n")
        line += connection.recv(len(seen) if end < 0 else end + 1)
    answer = json.loads(line)
    if not isinstance(answer, dict):
        raise ValueError("the line is no object")
    return answer
