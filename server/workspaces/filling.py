"""What a new workspace is filled with: files given inline, a copy of a directory of this host, or a git repository.

A host directory is copied, never mounted, and only from below ``ROOKERY_WORKSPACE_ROOTS``. Links in it are copied as
links and never followed, so that the copy cannot reach out of the directory.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import anyio.to_thread

from server.checkpoints import Skipped, SkipReason
from server.checkpoints.work import FULL, explained
from server.errors import ErrorCode, RookeryError
from server.files import components
from server.models import NotCopied
from server.sandboxes.base import Sandbox
from server.services import Services
from server.settings import Settings
from server.workspaces.cloning import Repository, clone

MAX_INLINE_FILES: Final = 2_000
MAX_INLINE_BYTES: Final = 16 << 20
MAX_COPIED_FILES: Final = 200_000
CHUNK: Final = 1 << 18

MAX_NOT_COPIED_SHOWN: Final = 20
"""Entries that were not copied and are told by name; the count is of all."""

MAX_NAME: Final = 300
"""Longest of these names in characters; of a longer one the end is told."""


def check_source(source: Mapping[str, Any], settings: Settings) -> None:
    """Refuse a workspace source that cannot be served, before a session exists.

    Raises:
        RookeryError: ``invalid_argument``, naming the remedy.
    """
    if "git" in source:
        Repository.parse(source, settings)
    if "files" in source:
        _check_inline(source["files"])
    if "path" in source:
        _host_directory(source["path"], settings)


def _check_inline(files: Mapping[str, str]) -> None:
    if len(files) > MAX_INLINE_FILES:
        raise _invalid(f"files holds more than {MAX_INLINE_FILES:,} entries; copy a directory with path instead")
    size, known, above = 0, set[tuple[bytes, ...]](), set[tuple[bytes, ...]]()
    for name, content in files.items():
        parts = components(name)
        if not parts:
            raise _invalid("files names the workspace itself")
        if parts in known:
            raise _invalid(f"files names {name[:100]!r} twice")
        known.add(parts)
        above.update(parts[:depth] for depth in range(1, len(parts)))
        try:
            size += len(content.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise _invalid(f"files holds lone surrogates, which are not text, in {name[:100]!r}") from error
        if size > MAX_INLINE_BYTES:
            raise _invalid(f"files holds more than {MAX_INLINE_BYTES >> 20} MiB; copy a directory with path instead")
    if known & above:
        raise _invalid("files names the same path as a file and as a directory")


async def fill(services: Services, sandbox: Sandbox, source: Mapping[str, Any]) -> tuple[Skipped, ...]:
    """Fill a new sandbox's workspace.

    Returns:
        What the source holds and the workspace cannot: pipes, sockets, devices.

    Raises:
        RookeryError: ``invalid_argument`` (a source that is gone or too large), what ``unpack`` and
            :func:`server.workspaces.cloning.clone` raise.
    """
    if "git" in source:
        await clone(services, sandbox, source)
        return ()
    with tempfile.TemporaryFile() as archive:
        try:
            skipped = await anyio.to_thread.run_sync(_pack, archive, source, services.settings)
        except OSError as error:
            if error.errno in FULL:
                raise explained(error) from error
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT,
                "workspace: path could not be read whole: something in it changed meanwhile, or may not be read.",
                detail=repr(error),
            ) from error
        archive.seek(0)
        await sandbox.unpack(_chunks(archive))
    return tuple(skipped)


def not_copied(skipped: Sequence[Skipped]) -> NotCopied:
    """What was left out, bounded, for the outcome of a session's first turn."""
    names = [entry.shown for entry in skipped[:MAX_NOT_COPIED_SHOWN]]
    shown = tuple(name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}" for name in names)
    return NotCopied(count=len(skipped), entries=shown)


async def _chunks(archive: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := await anyio.to_thread.run_sync(archive.read, CHUNK):
        yield chunk


def _pack(archive: IO[bytes], source: Mapping[str, Any], settings: Settings) -> list[Skipped]:
    skipped: list[Skipped] = []
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if "files" in source:
            for name, content in source["files"].items():
                data = content.encode("utf-8")
                entry = tarfile.TarInfo("/".join(os.fsdecode(part) for part in components(name)))
                entry.size, entry.mode = len(data), 0o644
                tar.addfile(entry, io.BytesIO(data))
        if "path" in source:
            _pack_directory(tar, _host_directory(source["path"], settings), settings.disk_mb << 20, skipped)
    return skipped


def _pack_directory(tar: tarfile.TarFile, root: Path, limit: int, skipped: list[Skipped]) -> None:
    count = size = 0
    for directory, names, files, descriptor in os.fwalk(root, follow_symlinks=False):
        below = Path(directory).relative_to(root)
        for name in sorted([*names, *files]):
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            entry = tarfile.TarInfo(os.fspath(below / name))
            entry.mode = stat.S_IMODE(status.st_mode) & 0o777
            entry.mtime = int(status.st_mtime)
            count += 1
            if count > MAX_COPIED_FILES:
                raise _too_large(limit)
            if stat.S_ISLNK(status.st_mode):
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=descriptor)
                tar.addfile(entry)
            elif stat.S_ISDIR(status.st_mode):
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            elif stat.S_ISREG(status.st_mode):
                opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor)
                with os.fdopen(opened, "rb") as file:
                    # Looked at again now that it is open: it may be another one, or longer.
                    status = os.fstat(opened)
                    if not stat.S_ISREG(status.st_mode):
                        skipped.append(Skipped(entry.name, SkipReason.BUSY))
                        continue
                    entry.size = status.st_size
                    size += status.st_size
                    if size > limit:
                        raise _too_large(limit)
                    tar.addfile(entry, file)
            else:
                skipped.append(Skipped(entry.name, SkipReason.of(status.st_mode)))


def _host_directory(path: str, settings: Settings) -> Path:
    if not settings.workspace_roots:
        raise _invalid("path is not allowed: set ROOKERY_WORKSPACE_ROOTS to the directories that may be copied from")
    if "\x00" in path or not path.startswith("/"):
        raise _invalid("path must be absolute")
    real = Path(os.path.realpath(path))
    roots = [Path(os.path.realpath(root)) for root in settings.workspace_roots]
    if not any(real == root or root in real.parents for root in roots):
        raise _invalid("path lies outside of ROOKERY_WORKSPACE_ROOTS")
    if not real.is_dir():
        raise _invalid("path is not a directory of this host")
    return real


def _too_large(limit: int) -> RookeryError:
    return _invalid(f"path holds more than {MAX_COPIED_FILES:,} entries or {limit >> 20:,} MiB")


def _invalid(what: str) -> RookeryError:
    return RookeryError(ErrorCode.INVALID_ARGUMENT, f"workspace: {what}.")
