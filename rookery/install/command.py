"""What ``rookery install`` does and says."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from rookery.install.clients import Client, Reach, target_of
from rookery.install.document import Change, RefusedError, add
from rookery.install.entry import NAME, entry_for, environment

CLAUDE_S: Final = 60.0
"""Longest that ``claude mcp`` may take."""

CREDENTIALS: Final = frozenset({"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"})

NEEDS_CREDENTIAL: Final = (
    "Agents need a credential: write a line as ANTHROPIC_API_KEY=… into a file that only you can read, and add "
    "--env ROOKERY_CREDENTIAL_FILE=/that/file; or set the variable where the client starts."
)


def install(client: Client, reach: Reach, assignments: list[str], *, show: bool, replace: bool) -> str:
    """Add Rookery to a client; what to tell the person.

    Args:
        assignments: ``NAME=VALUE`` words for the server's environment.
        show: only say what would be added, and where.
        replace: put it in the place of another entry of its name.

    Raises:
        RefusedError: the configuration is left as it is.
        ValueError: a word is wrong.
        OSError: a file cannot be read or written.
    """
    variables = environment(assignments)
    entry = entry_for(client, variables)
    target = target_of(client, reach, home=Path.home(), here=Path.cwd())
    hint = "" if variables.keys() & {*CREDENTIALS, "ROOKERY_CREDENTIAL_FILE"} else f"\n{NEEDS_CREDENTIAL}"
    if target is None:
        return _by_claude(entry, show=show, replace=replace) + hint
    if show:
        return f"{target.path}:\n{json.dumps({target.key: {NAME: entry}}, indent=2, ensure_ascii=False)}{hint}"
    try:
        change = add(target.path, target.key, NAME, entry, replace=replace)
    except RefusedError as refusal:
        shown = json.dumps({NAME: entry}, indent=2, ensure_ascii=False)
        raise RefusedError(
            f"{refusal}\nNothing was changed. To add it by hand, under {target.key}:\n{shown}"
        ) from refusal
    match change:
        case Change.UNCHANGED:
            return f"{target.path} has this entry already."
        case Change.CREATED:
            return f"{target.path} was made. {target.afterwards}{hint}"
        case Change.ADDED | Change.REPLACED:
            return (
                f"{target.path}: {NAME} was {change.value}; as it was before it is in .bak. {target.afterwards}{hint}"
            )


def _by_claude(entry: dict[str, Any], *, show: bool, replace: bool) -> str:
    """Have Claude Code write its own configuration: it holds much else, and a running one writes it too.

    Raises:
        RefusedError: it said no.
    """
    command = ["claude", "mcp", "add-json", "--scope", "user", NAME, json.dumps(entry)]
    by_hand = shlex.join(command)
    claude = shutil.which("claude")
    if show or claude is None:
        missing = "" if show else "Claude Code is not on your PATH. Where it is, run:\n"
        return f"{missing}{by_hand}"
    if replace:
        subprocess.run([claude, "mcp", "remove", "--scope", "user", NAME], capture_output=True, timeout=CLAUDE_S)
    done = subprocess.run([claude, *command[1:]], capture_output=True, text=True, timeout=CLAUDE_S)
    if done.returncode != 0:
        raise RefusedError(
            f"Claude Code did not take it: {(done.stderr or done.stdout).strip()[:500]}\nBy hand:\n{by_hand}"
        )
    return f"Claude Code has {NAME} now, for all your projects. `claude mcp list` shows it."
