"""Paths of URLs: whether one lies below a prefix, where a server may read the path in another way than we do.

An allow needs a path that every server reads alike; a denial takes every reading that some server may have.
"""

from __future__ import annotations

import unicodedata
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

MAX_DECODINGS: Final = 4
"""Layers of escapes that a denial looks through; what has more is denied."""

_ESCAPED: Final = frozenset(b"/\\.;%?#")
"""Characters that, written as an escape, divide or name something on one server and not on another."""


def surely_lies_below(path: str, prefix: str) -> bool:
    """Whether a path lies at or below a prefix on any server, by components. Its query does not matter."""
    plain = path.split("?", 1)[0]
    if not plain.startswith("/") or "\\" in plain or not _escapes_are_plain(plain):
        return False
    stem = prefix.rstrip("/")
    if any(part.split(";", 1)[0] in (".", "..") for part in plain.split("/")):
        return False
    # Some servers take "//" for "/": only what is written without it lies where it seems to.
    return (plain == stem or plain.startswith(f"{stem}/")) and "//" not in plain


def may_lie_below(path: str, prefix: str) -> bool:
    """Whether some server may read a path as one at or below a prefix, whatever its case."""
    stem = _components(prefix.casefold())
    form = path.split("?", 1)[0].split("#", 1)[0]
    for _ in range(MAX_DECODINGS):
        if any(reading[: len(stem)] == stem for reading in _readings(form)):
            return True
        decoded = unquote(form)
        if decoded == form:
            return False
        form = decoded
    return True


def _escapes_are_plain(text: str) -> bool:
    """Whether every escape of a path is well formed and stands for a plain character or for UTF-8."""
    for place, character in enumerate(text):
        if character == "%":
            digits = text[place + 1 : place + 3]
            if len(digits) < 2 or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
                return False
            value = int(digits, 16)
            if value < 0x20 or value == 0x7F or value in _ESCAPED:
                return False
    try:
        unquote_to_bytes(text).decode("utf-8")
    except UnicodeError:
        return False
    return True


def _readings(form: str) -> list[list[str]]:
    """A path's components as servers may take them: dots resolved or not, parameters cut off or not."""
    text = unicodedata.normalize("NFKC", form).casefold().replace("\\", "/")
    found = []
    for cut in (False, True):
        raw = [part.split(";", 1)[0] if cut else part for part in text.split("/")]
        found += [_components("/".join(raw)), _resolved(raw)]
    return found


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _resolved(parts: list[str]) -> list[str]:
    found: list[str] = []
    for part in parts:
        if part == "..":
            del found[-1:]
        elif part not in ("", "."):
            found.append(part)
    return found
