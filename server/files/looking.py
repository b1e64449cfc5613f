"""Looking at an agent's files without ever being led out of the workspace. Blocking; the standard library only.

The agent owns the tree and may change it at any moment, so nothing here trusts a path: every component is opened
relative to its parent's descriptor without following links, and what was opened is what is looked at (rows F03 to
F05 and F08 of the security catalogue).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.sandboxes.base import WORKSPACE

MAX_ENTRIES: Final = 5_000
"""Most entries that one listing may be asked for."""

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


@dataclass(frozen=True, slots=True)
class Seen:
    """One entry of a workspace directory."""

    path: bytes
    """Relative to the workspace."""
    kind: str
    """``file``, ``directory``, ``symlink`` or ``other``."""
    size: int
    mode: int
    """Permission bits."""
    mtime: float
    """Seconds; whatever the agent set it to."""
    target: bytes | None = None
    """Where a symlink points."""


@dataclass(frozen=True)
class Listing:
    """Entries below a directory, sorted; ``truncated`` says that there are more."""

    entries: tuple[Seen, ...]
    truncated: bool


@dataclass(frozen=True)
class Part:
    """A part of a file's content, and the size of the whole."""

    size: int
    data: bytes


@contextmanager
def opened_directory(root: Path, parts: tuple[bytes, ...]) -> Iterator[int]:
    """A descriptor of the directory at ``parts`` below ``root``; no component may be a link.

    Raises:
        OSError: it is not there, is no directory, or is a link.
    """
    descriptor = os.open(root, OPEN_DIRECTORY)
    try:
        for part in parts:
            child = os.open(part, OPEN_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = child
        yield descriptor
    finally:
        os.close(descriptor)


def read_link(root: Path, path: str) -> str | None:
    """The text of the symbolic link of a workspace at an absolute path, as the sandbox sees it, or None.

    Only paths below ``/workspace`` can be looked at from outside; every other path reads as no link.
    """
    parts = parts_below(path)
    if parts is None:
        return None
    try:
        with opened_directory(root, parts[:-1]) as parent:
            return os.fsdecode(os.readlink(parts[-1], dir_fd=parent))
    except (OSError, ValueError):
        return None


def parts_below(path: str) -> tuple[bytes, ...] | None:
    """The components of an absolute path below ``/workspace``; None for any other path."""
    if not path.startswith(f"{WORKSPACE}/"):
        return None
    try:
        parts = tuple(os.fsencode(part) for part in path[len(WORKSPACE) + 1 :].split("/") if part not in ("", "."))
    except UnicodeEncodeError:
        return None
    return parts if parts and b".." not in parts else None


def list_directory(root: Path, parts: tuple[bytes, ...], depth: int, limit: int) -> Listing:
    """At most ``limit`` entries of the directory at ``parts``, ``depth`` levels down.

    Raises:
        OSError: it is not there, is no directory, or is a link.
    """
    found: list[Seen] = []
    with opened_directory(root, parts) as descriptor:
        truncated = _walk(descriptor, parts, depth, limit, found)
    return Listing(tuple(found), truncated)


def _walk(descriptor: int, parts: tuple[bytes, ...], depth: int, limit: int, found: list[Seen]) -> bool:
    """Add the entries of a directory, and of those below it; whether the limit cut some off."""
    names: list[bytes] = []
    with os.scandir(descriptor) as scan:
        for entry in scan:
            names.append(os.fsencode(entry.name))
            if len(names) > MAX_ENTRIES * 4:
                break
    for name in sorted(names):
        if len(found) >= limit:
            return True
        try:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            target = os.readlink(name, dir_fd=descriptor) if stat.S_ISLNK(status.st_mode) else None
        except OSError:
            continue  # the agent removed it meanwhile
        below = (*parts, name)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
        mode = stat.S_IMODE(status.st_mode)
        found.append(Seen(b"/".join(below), kind, status.st_size, mode, status.st_mtime, target))
        if depth > 1 and stat.S_ISDIR(status.st_mode):
            try:
                child = os.open(name, OPEN_DIRECTORY, dir_fd=descriptor)
            except OSError:
                continue
            try:
                if _walk(child, below, depth - 1, limit, found):
                    return True
            finally:
                os.close(child)
    return len(names) > MAX_ENTRIES * 4


def read_part(root: Path, parts: tuple[bytes, ...], offset: int, limit: int) -> Part:
    """At most ``limit`` bytes of the regular file at ``parts``.

    Raises:
        OSError: it is not there or is a link; ``EINVAL``: it is no regular file.
    """
    with opened_directory(root, parts[:-1]) as parent:
        descriptor = os.open(parts[-1], _FILE, dir_fd=parent)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "Is not a regular file")
            file.seek(offset)
            return Part(status.st_size, file.read(limit) or b"")
