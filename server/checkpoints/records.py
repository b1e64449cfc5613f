"""What the checkpoint engine answers with: snapshots, changes, listings, skips.

Paths are relative to the workspace, separated by ``/``, as ``str`` with surrogate escapes (PEP 383), so that any
file name of a POSIX system comes through exactly; :func:`printable` makes one safe to show. Sizes are in bytes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What stands at a path."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    SKIPPED = "skipped"
    """Something that a checkpoint knows of but does not hold."""


class SkipReason(StrEnum):
    """Why a checkpoint does not hold an entry."""

    FIFO = "fifo"
    SOCKET = "socket"
    DEVICE = "device"
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    OTHER_FILESYSTEM = "other_filesystem"
    BUSY = "busy"
    """It changed its kind under the reading, or a process holds a lease on it."""

    @classmethod
    def of(cls, mode: int) -> SkipReason:
        """Why what is neither a file, a directory nor a link is left out."""
        if stat.S_ISFIFO(mode):
            return cls.FIFO
        return cls.SOCKET if stat.S_ISSOCK(mode) else cls.DEVICE

    @property
    def holds_content(self) -> bool:
        """Whether there may be content that a removal would lose for good; a rewind keeps such entries."""
        return self not in (SkipReason.FIFO, SkipReason.SOCKET, SkipReason.DEVICE)


@dataclass(frozen=True)
class Limits:
    """Bounds of one checkpoint, so that no tree can hold the server up.

    A file over its bound is recorded as skipped; a tree over its bounds is refused (``invalid_argument``).
    """

    max_entries: int = 300_000
    """Files, links and directories in one tree."""
    max_depth: int = 10_000
    """Directories inside each other."""
    max_file_bytes: int = 4 << 30
    """Data in one file; holes of a sparse file do not count."""
    max_new_bytes: int = 64 << 30
    """Data read for one checkpoint, that is: in files that are new or changed."""


@dataclass(frozen=True)
class Skipped:
    """An entry that a checkpoint does not hold."""

    path: str
    reason: SkipReason
    size: int = 0

    @property
    def shown(self) -> str:
        """The entry and why, safe to show."""
        return f"{printable(self.path)} ({self.reason})"


@dataclass(frozen=True)
class Snapshot:
    """A whole tree as it was at one moment."""

    tree_hash: str
    """Identity of the tree, 64 hexadecimal digits: equal hashes mean equal trees."""
    files: int
    """Files and links in it."""
    bytes: int
    """Their sizes added up (holes of sparse files included)."""
    skipped: tuple[Skipped, ...]
    """What it does not hold, the first 1,000 of them."""
    changed: int
    """How many entries differ from the previous snapshot under the same key; all of them in the first."""


class ChangeKind(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True)
class Item:
    """One entry of a tree, as listings and changes show it."""

    path: str
    kind: Kind
    mode: int
    """Permission bits."""
    size: int
    mtime_ns: int = 0
    target: str | None = None
    """Where a link points to."""
    reason: SkipReason | None = None
    """Why it was skipped, where ``kind`` is ``skipped``."""


@dataclass(frozen=True)
class Change:
    """One path that differs between two trees. A file that became a link or directory is one removed and one added."""

    path: str
    kind: ChangeKind
    before: Item | None
    after: Item | None
    lines_added: int | None = None
    """None where lines were not asked for, or do not apply (binary, too large, no file)."""
    lines_removed: int | None = None


@dataclass(frozen=True)
class Changes:
    """The difference between two trees. Directories appear only where they are empty or their mode changed."""

    added: int
    removed: int
    changed: int
    entries: tuple[Change, ...]
    """In the order of paths; at most as many as asked for."""
    truncated: bool
    """Whether there were more entries than listed. The counts are complete."""

    @property
    def total(self) -> int:
        return self.added + self.removed + self.changed


@dataclass(frozen=True)
class Restored:
    """What a restore did."""

    tree_hash: str
    exact: bool
    """Whether what is there now is the tree that was asked for, read back; False if something was kept or missing."""
    before: Snapshot
    """The tree as it was before: restoring it undoes the restore."""
    written: int
    """Files, links and directories written or set right."""
    removed: int
    kept: tuple[Skipped, ...]
    """What stays in place although the tree to restore does not have it, because no checkpoint can hold it."""
    missing: tuple[Skipped, ...]
    """What the restored tree had but no checkpoint could hold, and so is not there now."""
    separated: int
    """Hard links that were replaced by files of their own, so that nothing was written through them."""


@dataclass(frozen=True)
class Forecast:
    """What a restore will not bring about; both as in :class:`Restored`."""

    kept: tuple[Skipped, ...]
    missing: tuple[Skipped, ...]


@dataclass(frozen=True)
class FileSlice:
    """A part of a file's content."""

    data: bytes
    size: int
    """Of the whole file."""


@dataclass(frozen=True)
class Omitted:
    """A path that a patch could not carry."""

    path: str
    reason: str


@dataclass(frozen=True)
class Patch:
    """A patch in git's format."""

    data: bytes
    files: int
    omitted: tuple[Omitted, ...]


@dataclass(frozen=True)
class TextDiff:
    """A unified diff for reading; invalid UTF-8 is replaced."""

    text: str
    truncated: bool


@dataclass(frozen=True)
class PendingRestore:
    """A restore that was begun and not finished: run it again."""

    tree_hash: str
    before: str
    """Tree hash of the state before it began."""


@dataclass(frozen=True)
class Seal:
    """What a workspace was when it was left alone. Of one elsewhere, nothing goes on from anything else."""

    tree_hash: str
    token: str | None
    """Also kept inside, where the agent cannot reach it: a disk that was taken back has an older one. None: nobody
    could look at the workspace when it was left, and the tree is the last that is known of it."""


def printable(path: str) -> str:
    """A path as valid Unicode on one line: control characters, backslashes and undecodable bytes are escaped."""
    if path.isprintable() and "\\" not in path:
        return path
    out: list[str] = []
    for character in path:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif character == "\\" or not character.isprintable():
            out.append(character.encode("unicode_escape", "surrogatepass").decode("ascii"))
        else:
            out.append(character)
    return "".join(out)
