"""Paths of a workspace as they are given and shown: text, of which every file name of a POSIX system has one."""

from __future__ import annotations

from typing import Final

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import WORKSPACE

MAX_PATH: Final = 8_192
"""Longest path that is taken, in characters, escapes included."""


def shown(name: bytes) -> str:
    """A file name as text; bytes that are no UTF-8 and control characters as backslash escapes."""
    text = name.decode("utf-8", "surrogateescape")
    return "".join(_escape(character) for character in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return "\\\\" if character == "\\" else character


def components(path: str) -> tuple[bytes, ...]:
    """The components of a path below the workspace.

    Args:
        path: relative to the workspace, or absolute below ``/workspace``; escapes as :func:`shown` makes them.

    Raises:
        RookeryError: ``invalid_argument`` when it would leave the workspace or is no path at all.
    """
    if "\x00" in path or len(path) > MAX_PATH:
        raise invalid("is not a path")
    if path == WORKSPACE or path.startswith(f"{WORKSPACE}/"):
        path = path[len(WORKSPACE) :].lstrip("/")
    if path.startswith("/"):
        raise invalid(f"must lie in the workspace: give it relative, or below {WORKSPACE}")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise invalid("must not hold `..`")
    try:
        return tuple(_unescape(part) for part in parts)
    except ValueError as error:
        raise invalid("holds a broken backslash escape (write \\\\ for a backslash)") from error


def _unescape(part: str) -> bytes:
    out = bytearray()
    index = 0
    while index < len(part):
        if part[index] != "\\":
            out += part[index].encode("utf-8", "surrogateescape")
            index += 1
        elif part[index + 1 : index + 2] == "\\":
            out += b"\\"
            index += 2
        elif part[index + 1 : index + 2] == "x":
            digits = part[index + 2 : index + 4]
            if len(digits) != 2:
                raise ValueError("short escape")
            out.append(int(digits, 16))
            index += 4
        else:
            raise ValueError("unknown escape")
    if bytes(out) in (b"", b".", b"..") or b"/" in out or b"\x00" in out:
        raise ValueError("not a name")
    return bytes(out)


def invalid(what: str, argument: str = "path") -> RookeryError:
    """``invalid_argument`` about one argument."""
    return RookeryError(ErrorCode.INVALID_ARGUMENT, f"{argument}: {what}.")
