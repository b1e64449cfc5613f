"""Looking at an agent's files from the host, without ever being led out of the workspace.

The agent owns the tree and may change it at any moment, so nothing here trusts a path: every component is opened
relative to its parent's descriptor without following links, and what was opened is what is looked at (rows F03 to
F05 and F08 of the security catalogue). Undecodable names appear with backslash escapes and can be given back so.
"""

from __future__ import annotations

import base64
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio.to_thread

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import WORKSPACE
from server.views import FileContent, FileEntry, FileListing

MAX_READ_BYTES: Final = 1 << 20
MAX_ENTRIES: Final = 5_000
MAX_DEPTH: Final = 32

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
    if "\x00" in path or len(path) > 8_192:
        raise _invalid("is not a path")
    if path == WORKSPACE or path.startswith(f"{WORKSPACE}/"):
        path = path[len(WORKSPACE) :].lstrip("/")
    if path.startswith("/"):
        raise _invalid(f"must lie in the workspace: give it relative, or below {WORKSPACE}")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _invalid("must not hold `..`")
    try:
        return tuple(_unescape(part) for part in parts)
    except ValueError as error:
        raise _invalid("holds a broken backslash escape (write \\\\ for a backslash)") from error


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


@contextmanager
def opened_directory(root: Path, parts: tuple[bytes, ...]) -> Iterator[int]:
    """A descriptor of the directory at ``parts`` below ``root``; no component may be a link.

    Raises:
        OSError: it is not there, is no directory, or is a link.
    """
    descriptor = os.open(root, _DIRECTORY)
    try:
        for part in parts:
            child = os.open(part, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = child
        yield descriptor
    finally:
        os.close(descriptor)


def workspace_links(root: Path) -> Callable[[str], str | None]:
    """Look up symbolic links of the workspace as the sandbox sees them: absolute path → the link's text, or None.

    Only paths below ``/workspace`` can be looked at from the host; every other path reads as no link.
    """

    def look(path: str) -> str | None:
        if not path.startswith(f"{WORKSPACE}/"):
            return None
        parts = [os.fsencode(part) for part in path[len(WORKSPACE) + 1 :].split("/") if part not in ("", ".")]
        if not parts or b".." in parts:
            return None
        try:
            with opened_directory(root, tuple(parts[:-1])) as parent:
                return os.fsdecode(os.readlink(parts[-1], dir_fd=parent))
        except (OSError, ValueError):
            return None

    return look


async def list_files(session_id: str, root: Path, path: str, *, depth: int, limit: int) -> FileListing:
    """Entries below a workspace path, sorted.

    Args:
        session_id: for the answer.
        root: the workspace on this host.
        path: where to begin.
        depth: levels to go down, 1 to 32.
        limit: most entries to answer, 1 to 5,000; ``truncated`` says that there are more.

    Raises:
        RookeryError: ``invalid_argument``.
    """
    if not 1 <= depth <= MAX_DEPTH:
        raise _invalid(f"depth must be from 1 to {MAX_DEPTH}", "depth")
    if not 1 <= limit <= MAX_ENTRIES:
        raise _invalid(f"limit must be from 1 to {MAX_ENTRIES:,}", "limit")
    parts = components(path)

    def work() -> tuple[list[FileEntry], bool]:
        found: list[FileEntry] = []
        try:
            with opened_directory(root, parts) as descriptor:
                truncated = _walk(descriptor, parts, depth, limit, found)
        except OSError as error:
            raise _unreadable(path, error) from error
        return found, truncated

    entries, truncated = await anyio.to_thread.run_sync(work, abandon_on_cancel=False)
    return FileListing(
        session_id=session_id, path=shown(b"/".join(parts)) or ".", entries=tuple(entries), truncated=truncated
    )


def _walk(descriptor: int, parts: tuple[bytes, ...], depth: int, limit: int, found: list[FileEntry]) -> bool:
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
        found.append(_entry(below, status, target))
        if depth > 1 and stat.S_ISDIR(status.st_mode):
            try:
                child = os.open(name, _DIRECTORY, dir_fd=descriptor)
            except OSError:
                continue
            try:
                if _walk(child, below, depth - 1, limit, found):
                    return True
            finally:
                os.close(child)
    return len(names) > MAX_ENTRIES * 4


def _entry(parts: tuple[bytes, ...], status: os.stat_result, target: bytes | None) -> FileEntry:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    return FileEntry.model_validate(
        {
            "path": shown(b"/".join(parts)),
            "kind": kinds.get(stat.S_IFMT(status.st_mode), "other"),
            "size": status.st_size,
            "mode": f"{stat.S_IMODE(status.st_mode):04o}",
            "modified_at": _moment(status.st_mtime),
            "target": None if target is None else shown(target),
        }
    )


def _moment(seconds: float) -> datetime:
    """A file's time; the agent can set it to anything, also to what no calendar holds."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


async def read_file(session_id: str, root: Path, path: str, *, offset: int, limit: int) -> FileContent:
    """A part of one regular file.

    Args:
        session_id: for the answer.
        root: the workspace on this host.
        path: which file.
        offset: first byte, from 0.
        limit: most bytes to answer, 1 to 1 MiB; ``next_offset`` tells where to read on.

    Raises:
        RookeryError: ``invalid_argument``: no such file, a link, a directory, a device.
    """
    if offset < 0:
        raise _invalid("offset must not be negative", "offset")
    if not 1 <= limit <= MAX_READ_BYTES:
        raise _invalid(f"limit must be from 1 to {MAX_READ_BYTES:,}", "limit")
    parts = components(path)
    if not parts:
        raise _invalid("names the workspace itself: name a file")

    def work() -> tuple[int, bytes]:
        try:
            with opened_directory(root, parts[:-1]) as parent:
                descriptor = os.open(parts[-1], _FILE, dir_fd=parent)
                with os.fdopen(descriptor, "rb", buffering=0) as file:
                    status = os.fstat(descriptor)
                    if not stat.S_ISREG(status.st_mode):
                        raise _invalid("is not a regular file")
                    file.seek(offset)
                    return status.st_size, file.read(limit) or b""
        except OSError as error:
            raise _unreadable(path, error) from error

    size, data = await anyio.to_thread.run_sync(work)
    return file_content(session_id, shown(b"/".join(parts)), size, offset, data)


async def write_file(root: Path, path: str, data: bytes, owner: int | None) -> tuple[str, bool]:
    """Write one file of a workspace whole; directories that are missing are made. Never through a link.

    Args:
        root: the workspace on this host.
        path: which file.
        data: its new content.
        owner: host uid and gid that what is made gets; None: the server's own.

    Returns:
        The path as it is shown, and whether there was no such file before.

    Raises:
        RookeryError: ``invalid_argument``: the path is a directory or leads through a link;
            ``storage_unavailable``: the disk is full. The old content is intact then.
    """
    parts = components(path)
    if not parts:
        raise _invalid("names the workspace itself: name a file")

    def work() -> bool:
        try:
            with _made_directory(root, parts[:-1], owner) as parent:
                return _replace(parent, parts[-1], data, owner)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                message = "The disk of ROOKERY_HOME is full or failing; the file is as it was."
                raise RookeryError(ErrorCode.STORAGE_UNAVAILABLE, message, detail=str(error)) from error
            raise _invalid(
                f"cannot be written: {error.strerror or 'failed'}; it must not lead through a link"
            ) from error

    return shown(b"/".join(parts)), await anyio.to_thread.run_sync(work)


@contextmanager
def _made_directory(root: Path, parts: tuple[bytes, ...], owner: int | None) -> Iterator[int]:
    descriptor = os.open(root, _DIRECTORY)
    try:
        for part in parts:
            try:
                os.mkdir(part, 0o755, dir_fd=descriptor)
            except FileExistsError:
                made = False
            else:
                made = True
            child = os.open(part, _DIRECTORY, dir_fd=descriptor)
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


def file_content(session_id: str, path: str, size: int, offset: int, data: bytes) -> FileContent:
    """An answer with the data as text where it is UTF-8; a character cut at the end is left for the next part."""
    text: str | None
    whole = offset + len(data) >= size
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        text = None
        if not whole and error.start > 0 and len(data) - error.start < 4 and error.reason == "unexpected end of data":
            data = data[: error.start]
            text = data.decode("utf-8")
    if text is not None and "\x00" in text:
        text = None
    end = offset + len(data)
    return FileContent(
        session_id=session_id,
        path=path,
        size=size,
        offset=offset,
        text=text,
        base64=None if text is not None else base64.b64encode(data).decode("ascii"),
        next_offset=end if end < size and data else None,
    )


def _invalid(what: str, argument: str = "path") -> RookeryError:
    return RookeryError(ErrorCode.INVALID_ARGUMENT, f"{argument}: {what}.")


def _unreadable(path: str, error: OSError) -> RookeryError:
    return RookeryError(
        ErrorCode.INVALID_ARGUMENT,
        f"path: there is no such file or directory in the workspace, or it is a link ({error.strerror or 'failed'}). "
        "Call list_files to see what is there.",
        detail=f"{path!r}: {error}",
    )
