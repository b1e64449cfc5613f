"""Takes out of answers what could steer a terminal or mislead the eye (row X13).

An agent's words, the names of its files and what its tools printed are untrusted: an escape sequence in them could
move a cursor, set a clipboard or hide a line where a client shows them. Newlines and tabs stay.
"""

from __future__ import annotations

import re
from typing import Any, Final

_STEERING: Final = re.compile(
    # Controls of both kinds but tab and newline, overrides of the direction of writing, and characters of no width.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)

MAX_DEPTH: Final = 64


def cleaned(text: str) -> str:
    """The text with a replacement character for each that steers; carriage returns before newlines just go."""
    if text.isascii() and text.isprintable():
        return text
    return _STEERING.sub("\ufffd", text.replace("\r\n", "\n"))


def cleaned_value(value: Any, depth: int = 0) -> Any:
    """A JSON value with all its strings cleaned, keys included; what is nested too deeply is left out."""
    if isinstance(value, str):
        return cleaned(value)
    if depth >= MAX_DEPTH:
        return None if isinstance(value, dict | list) else value
    if isinstance(value, dict):
        return {cleaned(key): cleaned_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned_value(item, depth + 1) for item in value]
    return value
