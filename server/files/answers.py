"""Files of a workspace as answers show them: arguments checked, names printable, failures explained."""

from __future__ import annotations

import base64
import errno
from datetime import UTC, datetime
from typing import Final

from server.errors import ErrorCode, RookeryError
from server.files.base import ReadableFiles, WorkspaceFiles
from server.files.looking import MAX_ENTRIES, Seen
from server.files.paths import components, invalid, shown
from server.views import FileContent, FileEntry, FileListing

MAX_READ_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


async def list_files(session_id: str, files: ReadableFiles, path: str, *, depth: int, limit: int) -> FileListing:
    """Entries below a workspace path, sorted.

    Args:
        session_id: for the answer.
        files: the session's.
        path: where to begin.
        depth: levels to go down, 1 to 32.
        limit: most entries to answer, 1 to 5,000; ``truncated`` says that there are more.

    Raises:
        RookeryError: ``invalid_argument``.
    """
    if not 1 <= depth <= MAX_DEPTH:
        raise invalid(f"depth must be from 1 to {MAX_DEPTH}", "depth")
    if not 1 <= limit <= MAX_ENTRIES:
        raise invalid(f"limit must be from 1 to {MAX_ENTRIES:,}", "limit")
    parts = components(path)
    try:
        found = await files.listing(parts, depth, limit)
    except OSError as error:
        raise _unreadable(path, error) from error
    entries = tuple(_entry(seen) for seen in found.entries)
    return FileListing(
        session_id=session_id, path=shown(b"/".join(parts)) or ".", entries=entries, truncated=found.truncated
    )


def _entry(seen: Seen) -> FileEntry:
    return FileEntry.model_validate(
        {
            "path": shown(seen.path),
            "kind": seen.kind,
            "size": seen.size,
            "mode": f"{seen.mode:04o}",
            "modified_at": _moment(seen.mtime),
            "target": None if seen.target is None else shown(seen.target),
        }
    )


def _moment(seconds: float) -> datetime:
    """A file's time; the agent can set it to anything, also to what no calendar holds."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


async def read_file(session_id: str, files: ReadableFiles, path: str, *, offset: int, limit: int) -> FileContent:
    """A part of one regular file.

    Args:
        session_id: for the answer.
        files: the session's.
        path: which file.
        offset: first byte, from 0.
        limit: most bytes to answer, 1 to 1 MiB; ``next_offset`` tells where to read on.

    Raises:
        RookeryError: ``invalid_argument``: no such file, a link, a directory, a device.
    """
    if offset < 0:
        raise invalid("offset must not be negative", "offset")
    if not 1 <= limit <= MAX_READ_BYTES:
        raise invalid(f"limit must be from 1 to {MAX_READ_BYTES:,}", "limit")
    parts = components(path)
    if not parts:
        raise invalid("names the workspace itself: name a file")
    try:
        part = await files.read(parts, offset, limit)
    except OSError as error:
        raise _unreadable(path, error) from error
    return file_content(session_id, shown(b"/".join(parts)), part.size, offset, part.data)


async def write_file(files: WorkspaceFiles, path: str, data: bytes) -> tuple[str, bool]:
    """Write one file of a workspace whole; directories that are missing are made. Never through a link.

    Args:
        files: the session's.
        path: which file.
        data: its new content.

    Returns:
        The path as it is shown, and whether there was no such file before.

    Raises:
        RookeryError: ``invalid_argument``: the path is a directory or leads through a link;
            ``storage_unavailable``: the disk is full. The old content is intact then.
    """
    parts = components(path)
    if not parts:
        raise invalid("names the workspace itself: name a file")
    try:
        return shown(b"/".join(parts)), await files.write(parts, data)
    except OSError as error:
        if error.errno in _FULL:
            message = "The disk that holds the workspace is full or failing; the file is as it was."
            raise RookeryError(ErrorCode.STORAGE_UNAVAILABLE, message, detail=str(error)) from error
        raise invalid(f"cannot be written: {error.strerror or 'failed'}; it must not lead through a link") from error


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


def _unreadable(path: str, error: OSError) -> RookeryError:
    if error.errno == errno.EINVAL:
        return invalid("is not a regular file")
    return RookeryError(
        ErrorCode.INVALID_ARGUMENT,
        f"path: there is no such file or directory in the workspace, or it is a link ({error.strerror or 'failed'}). "
        "Call list_files to see what is there.",
        detail=f"{path!r}: {error}",
    )
