"""Where Rookery keeps everything. Standard library only, for ``rookery connect`` needs it at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def default_home() -> Path:
    """The user's data directory (of the XDG base directories); root keeps its agents in the system's, which other
    uids can traverse."""
    if os.geteuid() == 0:
        return Path("/var/lib/rookery")
    named = os.environ.get("XDG_DATA_HOME", "").strip()
    return (Path(named) if named else Path.home() / ".local" / "share") / "rookery"


def home_of(variables: Mapping[str, str]) -> Path:
    """The home that an environment names, as :class:`server.settings.Settings` reads it: in any case of letters."""
    named = next((value for name, value in variables.items() if name.upper() == "ROOKERY_HOME" and value), None)
    return default_home() if named is None else Path(named).expanduser().absolute()
