"""Text that is cut to a length, and says so."""

from __future__ import annotations

from typing import Final

MAX_EVENT_TEXT: Final = 100_000
"""Longest text kept in one event, in characters; the whole is in the transcript."""


def bounded(text: str, limit: int = MAX_EVENT_TEXT) -> str:
    """The text, cut at ``limit`` characters with a note of what is missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n… {len(text) - limit:,} more characters"
