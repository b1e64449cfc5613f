"""Removing files from a tree, one directory at a time, never through a link."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from server.checkpoints.descent import OPEN_DIRECTORY, Descent
from server.checkpoints.manifest import DIRECTORY, SKIPPED, Entry, reason_of
from server.checkpoints.records import Skipped
from server.checkpoints.trees import Trees, skipped_of, text_of
from server.checkpoints.work import Stop, TreeMovedError

_NOT_AS_SEEN = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST})


def remove_known(descent: Descent, trees: Trees, entry: Entry, path: str, stop: Stop) -> tuple[int, list[Skipped]]:
    """Remove an entry of the present directory, with all that is known to be below it.

    Only what a checkpoint has seen is removed: anything that appeared since makes the removal fail, so that nothing
    is lost that cannot be brought back. What no checkpoint can hold stays, and so do the directories it is in.

    Args:
        entry: what was seen there.
        path: of the entry, for what is kept.

    Returns:
        How many entries were removed, and what was kept.

    Raises:
        TreeMovedError: the tree is not as it was seen.
    """
    kept: list[Skipped] = []
    removed = 0
    frames: list[tuple[Entry, str, Iterator[Entry], int]] = []
    waiting: Entry | None = entry
    try:
        while True:
            if waiting is not None:
                prefix = f"{frames[-1][1]}/{text_of(waiting.name)}" if frames else path
                if waiting.kind == DIRECTORY:
                    with contextlib.suppress(FileNotFoundError):
                        descent.enter(waiting.name)
                        frames.append((waiting, prefix, iter(trees.read(waiting.payload).entries), len(kept)))
                elif waiting.kind == SKIPPED and reason_of(waiting).holds_content:
                    kept.append(skipped_of(waiting, prefix))
                else:
                    removed += _unlink(waiting.name, descent.fd)
            if not frames:
                return removed, kept
            stop.check()
            waiting = next(frames[-1][2], None)
            if waiting is None:
                done, _, _, kept_before = frames.pop()
                descent.leave()
                if len(kept) == kept_before:
                    os.rmdir(done.name, dir_fd=descent.fd)
                    removed += 1
    except OSError as error:
        if error.errno in _NOT_AS_SEEN:
            raise TreeMovedError from error
        raise


def _unlink(name: bytes, parent: int) -> int:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return 0
    return 1


def clear_directory(fd: int) -> None:
    """Remove all that is in a directory of ours, whatever it is. Takes the descriptor over and closes it.

    Raises:
        OSError, TreeMovedError: something could not be removed.
    """
    descent = Descent(fd)
    try:
        frames: list[tuple[bytes, list[bytes]]] = [(b"", _clear_files(fd))]
        while frames:
            if frames[-1][1]:
                name = frames[-1][1].pop()
                frames.append((name, _clear_files(descent.enter(name))))
                continue
            name, _ = frames.pop()
            if frames:
                descent.leave()
                os.rmdir(name, dir_fd=descent.fd)
    finally:
        descent.close()


def _clear_files(fd: int) -> list[bytes]:
    """Unlink all but the directories, and return those."""
    directories: list[bytes] = []
    for name in os.listdir(fd):
        raw = os.fsencode(name)
        if stat.S_ISDIR(os.lstat(raw, dir_fd=fd).st_mode):
            directories.append(raw)
        else:
            os.unlink(raw, dir_fd=fd)
    return directories


def remove_directory(path: Path) -> None:
    """Remove a directory of ours with all that is in it; nothing happens when it is not there, or is none.

    Raises:
        OSError, TreeMovedError: something could not be removed.
    """
    try:
        fd = os.open(path, OPEN_DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return
        raise
    clear_directory(fd)
    path.rmdir()
