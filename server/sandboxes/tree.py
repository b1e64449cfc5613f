"""Walking, measuring and removing directories that an agent filled, without ever following what it left there.

Everything goes through directory descriptors opened with ``O_NOFOLLOW``: a symbolic link, or a directory swapped for
one while we look, leads nowhere (rows F04, F05 of the catalogue of attacks). Depth and number of entries are the
agent's choice, so descriptors stay bounded whatever it chose, and nothing recurses (F08).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTRY_COST: Final = 4096
"""What every entry counts at least, so that a million empty files is not free."""
_HELD_OPEN: Final = 64
"""Directories held open at once on the way down; those above are opened again, and checked, on the way up."""


class TreeChangedError(OSError):
    """A directory was moved or replaced while it was walked."""


@dataclass(frozen=True)
class Entry:
    """One entry met on a walk."""

    path: str
    """Relative to the walk's start, with ``/``; decoded with ``os.fsdecode``."""
    name: str
    directory: int
    """Descriptor of the directory that holds it; open only until the walk goes on."""
    status: os.stat_result


@dataclass
class _Level:
    """One directory on the way down."""

    prefix: str
    identity: tuple[int, int]
    descriptor: int | None
    pending: list[str]


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def split_path(path: str) -> list[str]:
    """The components of a path that must stay below its root.

    Raises:
        ValueError: it is absolute, climbs, or holds a NUL character.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError("the path leaves the workspace")
    return parts


def open_beneath(root: int, parts: list[str], *, create: bool = False, owner: int | None = None) -> int:
    """A descriptor of a directory below the directory ``root``; no component may be a link.

    Args:
        parts: components, as :func:`split_path` gives them.
        create: make the missing ones.
        owner: uid and gid of those made; None: ourselves.

    Raises:
        OSError: it does not exist, or a component is no directory.
    """
    descriptor = os.open(".", OPEN_DIRECTORY, dir_fd=root)
    for part in parts:
        try:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=descriptor)
                    if owner is not None:
                        os.chown(part, owner, owner, dir_fd=descriptor, follow_symlinks=False)
            below = os.open(part, OPEN_DIRECTORY, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def walk(start: int) -> Iterator[Entry]:
    """All entries below the open directory ``start``, each directory before what it holds.

    Directories that cannot be opened are passed over, and so are entries that vanish meanwhile. Memory grows with
    the number of subdirectories in the directories of the present path, so a caller bounds how many entries it takes.

    Raises:
        TreeChangedError: the tree moved under the walk in a way that would lead elsewhere.
    """
    levels = [_Level("", _identity(start), os.open(".", OPEN_DIRECTORY, dir_fd=start), [])]
    try:
        yield from _list(levels[-1])
        while levels:
            level = levels[-1]
            assert level.descriptor is not None, "the present directory is always open"
            if level.pending:
                name = level.pending.pop()
                try:
                    descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=level.descriptor)
                except OSError:
                    continue
                levels.append(_Level(f"{level.prefix}{name}/", _identity(descriptor), descriptor, []))
                if len(levels) > _HELD_OPEN:
                    _release(levels[-1 - _HELD_OPEN])
                yield from _list(levels[-1])
                continue
            if len(levels) > 1 and levels[-2].descriptor is None:
                levels[-2].descriptor = _climb(level.descriptor, levels[-2].identity)
            _release(levels.pop())
    finally:
        for level in levels:
            _release(level)


def _list(level: _Level) -> Iterator[Entry]:
    assert level.descriptor is not None, "only open directories are listed"
    with os.scandir(level.descriptor) as entries:
        for entry in entries:
            try:
                status = os.stat(entry.name, dir_fd=level.descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                level.pending.append(entry.name)
            yield Entry(level.prefix + entry.name, entry.name, level.descriptor, status)


def _release(level: _Level) -> None:
    if level.descriptor is not None:
        os.close(level.descriptor)
        level.descriptor = None


def _climb(descriptor: int, expected: tuple[int, int]) -> int:
    """Open the parent, and make sure that it is the one the walk came from."""
    parent = os.open("..", OPEN_DIRECTORY, dir_fd=descriptor)
    if _identity(parent) != expected:
        os.close(parent)
        raise TreeChangedError("a directory moved while it was walked")
    return parent


def measure(start: int, limit: int) -> int:
    """Bytes on disk below the open directory ``start``, counted up to a little more than ``limit``.

    Raises:
        TreeChangedError: see :func:`walk`.
    """
    total = 0
    for entry in walk(start):
        total += max(entry.status.st_blocks * 512, _ENTRY_COST)
        if total > limit:
            break
    return total


def remove_tree(parent: int, name: str, *, deadline: float = float("inf")) -> bool:
    """Remove the directory ``name`` of the open directory ``parent`` with all it holds.

    Subdirectories are first moved to the top of the tree, one by one, and then emptied there: so neither depth nor
    number costs memory or descriptors. Several processes may do this at once.

    Args:
        deadline: give up then, on the clock of ``time.monotonic``; what is left can be removed by a later call.

    Returns:
        Whether it is gone.

    Raises:
        OSError: something could not be removed that should have been.
    """
    try:
        top = _open_by_force(parent, name)
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
        return True
    token = secrets.token_hex(8)
    moved = 0
    try:
        while True:
            met = False
            with os.scandir(top) as entries:
                for entry in entries:
                    met = True
                    if time.monotonic() > deadline:
                        return False
                    if not entry.is_dir(follow_symlinks=False):
                        _unlink(entry.name, top)
                        continue
                    moved = _dissolve(top, entry.name, token, moved, deadline)
            if not met:
                break
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)
    return True


def _dissolve(top: int, name: str, token: str, moved: int, deadline: float) -> int:
    """Empty the directory ``name`` of ``top``: unlink its files, move its directories to ``top``; then remove it."""
    try:
        descriptor = _open_by_force(top, name)
    except (FileNotFoundError, NotADirectoryError):
        return moved
    try:
        met = True
        while met and time.monotonic() <= deadline:
            met = False
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    met = True
                    if time.monotonic() > deadline:
                        break
                    if not entry.is_dir(follow_symlinks=False):
                        _unlink(entry.name, descriptor)
                        continue
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        os.close(_open_by_force(descriptor, entry.name))
                        os.rename(entry.name, f"{token}-{moved}", src_dir_fd=descriptor, dst_dir_fd=top)
                        moved += 1
    finally:
        os.close(descriptor)
    # Past the deadline it may still hold something; the caller sees the deadline too.
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=top)
    return moved


def _unlink(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _open_by_force(parent: int, name: str) -> int:
    """Open a directory whose mode may forbid it. Its owner, or root, may change the mode of exactly that inode."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)  # noqa: PTH101 - the only way to name an open inode
        return os.open(".", OPEN_DIRECTORY, dir_fd=handle)
    finally:
        os.close(handle)


def write_files(root: int, files: Mapping[str, bytes], owner: int | None) -> None:
    """Write new files below the open directory ``root``, readable for their ``owner`` alone (None: ourselves).

    Raises:
        ValueError: a path leaves the root or is empty.
        OSError: a file exists already, or cannot be written.
    """
    for path, content in files.items():
        parts = split_path(path)
        if not parts:
            raise ValueError("a file without a name")
        directory = open_beneath(root, parts[:-1], create=True, owner=owner)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(parts[-1], flags, 0o600, dir_fd=directory), "wb") as file:
                if owner is not None:
                    os.fchown(file.fileno(), owner, owner)
                file.write(content)
        finally:
            os.close(directory)
