"""The addresses of resources, as RFC 6570 templates, and what they name."""

from __future__ import annotations

import re
from typing import Final

SESSION: Final = "rookery://sessions/{session_id}"
TRANSCRIPT: Final = "rookery://sessions/{session_id}/transcript{?after}"
FILE: Final = "rookery://sessions/{session_id}/files/{+path}"
PATCH: Final = "rookery://sessions/{session_id}/changes.patch{?since,until,paths}"

_OF_SESSION: Final = re.compile(r"rookery://sessions/([A-Za-z0-9_.:-]{1,128})(?:[/?].*)?", re.DOTALL)


def session_of(address: str) -> str | None:
    """The session that an address names, or None."""
    match = _OF_SESSION.fullmatch(address)
    return None if match is None else match.group(1)


MAX_RESOURCE_BYTES: Final = 8 << 20
"""Longest resource: beyond it, tools read in parts."""
