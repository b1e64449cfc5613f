"""Writing one file of a workspace, whole or not at all, never through a link. Blocking; the standard library only."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.files.looking import OPEN_DIRECTORY


def write_whole(root: Path, parts: tuple[bytes, ...], data: bytes, owner: int | None) -> bool:
    """Put a file in place; directories that are missing are made.

    Args:
        root: the workspace.
        parts: which file, at least one component.
        data: its new content.
        owner: uid and gid that what is made gets; None: our own.

    Returns:
        Whether there was no such file before.

    Raises:
        OSError: the path leads through a link or to no regular file, or the disk refused. The old content is intact.
    """
    with _made_directory(root, parts[:-1], owner) as parent:
        return _replace(parent, parts[-1], data, owner)


@contextmanager
def _made_directory(root: Path, parts: tuple[bytes, ...], owner: int | None) -> Iterator[int]:
    descriptor = os.open(root, OPEN_DIRECTORY)
    try:
        for part in parts:
            try:
                os.mkdir(part, 0o755, dir_fd=descriptor)
            except FileExistsError:
                made = False
            else:
                made = True
            child = os.open(part, OPEN_DIRECTORY, dir_fd=descriptor)
            if made and owner is not None:
                os.fchown(child, owner, owner)
            os.close(descriptor)
            descriptor = child
        yield descriptor
    finally:
        os.close(descriptor)


def _replace(parent: int, name: bytes, data: bytes, owner: int | None) -> bool:
    """Put a whole new file in the place of a name, at once; whether the name was free."""
    mode = 0o644
    try:
        present = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        created = True
    else:
        created = False
        if not stat.S_ISREG(present.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        mode = stat.S_IMODE(present.st_mode) & 0o777
    temporary = os.fsencode(f".{secrets.token_hex(8)}.rookery")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            if owner is not None:
                os.fchown(descriptor, owner, owner)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=parent)
        raise
    return created
