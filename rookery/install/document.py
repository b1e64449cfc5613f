"""Adding an entry to a client's JSON file without touching anything else in it."""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
import tempfile
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

MAX_BYTES: Final = 8 << 20
"""A configuration longer than this is not one."""


class RefusedError(Exception):
    """The file is left as it is; the message says why, and the person can add the entry by hand."""


class Change(StrEnum):
    """What became of the file."""

    CREATED = "created"
    ADDED = "added"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"


def add(path: Path, key: str, name: str, entry: dict[str, Any], *, replace: bool = False) -> Change:
    """Put an entry under ``key`` of the file's root object. All else stays, in its order, with its indentation.

    A file that exists is kept beside it as ``NAME.bak`` before it changes, and is replaced at once and whole. A
    symbolic link stays one: what it points to is written.

    Args:
        replace: whether an entry of this name that says something else may be replaced.

    Raises:
        RefusedError: the file is no plain JSON object (comments, for instance, would be lost), holds another entry of
            this name, or was changed by somebody meanwhile.
        OSError: it cannot be read or written.
    """
    real = path.resolve()
    before = _read(real)
    document, text = _parsed(before or b"", path)
    servers = document.setdefault(key, {})
    if not isinstance(servers, dict):
        raise RefusedError(f"{path} holds something else than an object at {key}.")
    known = servers.get(name)
    if known == entry:
        return Change.UNCHANGED
    if known is not None and not replace:
        raise RefusedError(f"{path} has another entry {name} already; --replace puts this one in its place.")
    servers[name] = entry
    after = json.dumps(document, indent=_indentation(text), ensure_ascii=False) + "\n"
    mark = codecs.BOM_UTF8 if before is not None and before.startswith(codecs.BOM_UTF8) else b""
    _write(real, before, mark + after.encode("utf-8", "surrogatepass"))
    if before is None:
        return Change.CREATED
    return Change.ADDED if known is None else Change.REPLACED


def _read(path: Path) -> bytes | None:
    """The file; None when there is none.

    Raises:
        RefusedError: it is no regular file, or far too large.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        raise RefusedError(f"{path} is not a configuration file.")
    return path.read_bytes()


def _parsed(content: bytes, path: Path) -> tuple[dict[str, Any], str]:
    """The file's root object, and its text."""
    try:
        text = content.decode("utf-8-sig")
        document = json.loads(text, object_pairs_hook=_unique) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise RefusedError(
            f"{path} is not plain JSON ({error}); comments and trailing commas would be lost if it were written."
        ) from error
    if not isinstance(document, dict):
        raise RefusedError(f"{path} does not hold an object.")
    return document, text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one that names a member twice would lose one of the two."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is named twice")
    return found


def _indentation(text: str) -> int | str:
    """How the file is indented; two spaces where it does not say."""
    match = re.search(r"\n([ \t]+)\S", text)
    return match.group(1) if match is not None else 2


def _write(path: Path, before: bytes | None, after: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = 0o600 if before is None else stat.S_IMODE(path.stat().st_mode)
    if before is not None:
        _put(path.with_name(path.name + ".bak"), before, mode)
    if _read(path) != before:
        raise RefusedError(f"{path} was changed by another program just now; try again.")
    _put(path, after, mode)


def _put(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole: readers see the old one or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
