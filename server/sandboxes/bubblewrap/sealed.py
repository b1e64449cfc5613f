"""A copy of the CLI that can be executed but not read.

The agent's commands run under the same uid as its CLI. Where the kernel has no Yama (Debian, for one), that is enough
to open ``/proc/<cli>/mem`` and write into the CLI, which no system call filter can tell from opening a file: a command
could forge what the CLI says to us. The kernel protects a process whose program file its user may not read: its
``/proc`` entries belong to root, and ``mem``, ``fd``, ``environ`` and tracing are refused (``would_dump`` in
``fs/exec.c``; ``__ptrace_may_access``). So the CLI is run from a copy of mode 0111, seen through a read-only mount
that keeps even its owner from changing the mode.

The copy (about 380 MB) is made once for each version and shared by all homes of the user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import Final

import platformdirs

_MODE: Final = 0o111
_CLONE: Final = 0x4004_9409
"""``FICLONE`` of ``linux/fs.h``: share the blocks, where the file system can."""
_COPY_STEP: Final = 1 << 30
_KEPT: Final = 2
"""Versions kept; older ones go when a new one comes. Running sandboxes are not disturbed by that."""


def sealed_copy(cli: Path, home: Path) -> Path:
    """The sealed copy of ``cli``, made now unless it is there. Blocks for a fraction of a second when it is not.

    Args:
        cli: the program as installed.
        home: where the copy goes when the user has no writable cache directory.

    Raises:
        OSError: the program cannot be read, or there is no room for the copy.
    """
    status = cli.stat()
    name = f"claude-{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
    cache = _directory(home)
    copy = cache / name
    with contextlib.suppress(FileNotFoundError):
        found = copy.lstat()
        if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == _MODE and found.st_size == status.st_size:
            return copy
    draft = cache / f".{name}-{secrets.token_hex(8)}"
    try:
        _copy(cli, draft)
        draft.chmod(_MODE)
        draft.replace(copy)
    finally:
        draft.unlink(missing_ok=True)
    _forget_old(cache, copy)
    return copy


def _directory(home: Path) -> Path:
    """The user's cache, if it is truly the user's; else a directory of the home."""
    cache = platformdirs.user_cache_path("rookery") / "cli"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = cache.lstat()
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and os.access(cache, os.W_OK):
            return cache
    except OSError:
        pass
    fallback = home / "cli"
    fallback.mkdir(mode=0o700, parents=True, exist_ok=True)
    return fallback


def _copy(source: Path, target: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with source.open("rb") as origin, os.fdopen(os.open(target, flags, 0o600), "wb") as copy:
        with contextlib.suppress(OSError):
            fcntl.ioctl(copy.fileno(), _CLONE, origin.fileno())
            return
        while os.sendfile(copy.fileno(), origin.fileno(), None, _COPY_STEP):
            pass


def _forget_old(cache: Path, newest: Path) -> None:
    with contextlib.suppress(OSError):
        others = [path for path in cache.glob("claude-*") if path != newest]
        others.sort(key=lambda path: path.lstat().st_ctime, reverse=True)
        for path in others[_KEPT - 1 :]:
            path.unlink(missing_ok=True)
