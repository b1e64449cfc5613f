"""Reads the settings for a command, and says which variable is wrong where one is."""

from __future__ import annotations

import sys
from typing import Final

from pydantic import ValidationError

from server.settings import Settings, split_names

USAGE_ERROR: Final = 2
"""Exit code of a command that was called wrongly."""


def load_settings() -> Settings:
    """The settings of the environment; leaves the process with a line for each variable that is out of its bounds."""
    try:
        return Settings.load()
    except ValidationError as error:
        for fault in error.errors(include_input=False, include_url=False):
            name = str(fault["loc"][0]) if fault["loc"] else "settings"
            variable = name if name.isupper() else f"ROOKERY_{name.upper()}"
            sys.stderr.write(f"{variable}: {fault['msg']}\n")
        raise SystemExit(USAGE_ERROR) from error


def offering(settings: Settings, toolsets: str | None, *, read_only: bool) -> Settings:
    """The settings with the toolsets that the command line names instead, if it does, and checked.

    Leaves the process with a line that says what is wrong.
    """
    from server.errors import RookeryError
    from tools.toolsets import tools_of

    changes: dict[str, object] = {}
    if toolsets is not None:
        changes["toolsets"] = split_names(toolsets)
    if read_only:
        changes["read_only"] = True
    chosen = settings.model_copy(update=changes)
    try:
        tools_of(chosen.toolsets, read_only=chosen.read_only)
    except RookeryError as error:
        sys.stderr.write(f"ROOKERY_TOOLSETS: {error.message}\n")
        raise SystemExit(USAGE_ERROR) from error
    return chosen
