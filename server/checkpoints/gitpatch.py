"""A difference between two trees as a patch that ``git apply`` takes: the work of an agent, to be taken home.

The format is git's own (``git help diff-generate-patch``, ``git help apply``): text as unified hunks, everything else
as "GIT binary patch" with both directions, so that ``git apply -R`` works too. Git is not run for it.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterator
from typing import Final

from server.checkpoints.compare import Pair, differences
from server.checkpoints.content import read_content
from server.checkpoints.manifest import DIRECTORY, SKIPPED, SYMLINK, Entry
from server.checkpoints.records import Omitted, Patch
from server.checkpoints.trees import Trees, text_of
from server.checkpoints.unified import TEXT_BYTES, PathFilter, file_names, git_mode, hunks, mode_lines, quoted
from server.checkpoints.work import Stop
from server.errors import ErrorCode, RookeryError

_NO_BLOB: Final = b"0" * 40
_LINE_BYTES: Final = 52
_LENGTHS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_IGNORED_BY_HFS: Final = {*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF}


def export_patch(
    trees: Trees, before: bytes | None, after: bytes | None, wanted: PathFilter, max_bytes: int, stop: Stop
) -> Patch:
    """The patch from one tree to another.

    Args:
        max_bytes: bound on the contents that are read for it, and on the patch.

    Raises:
        RookeryError: ``invalid_argument``: it would be larger.
    """
    omitted: list[Omitted] = []
    removals: list[bytes] = []
    others: list[bytes] = []
    left = max_bytes
    files = 0
    for pair in differences(trees, before, after, stop):
        if not wanted(pair.path):
            continue
        reason = _unfit(pair)
        if reason is not None:
            omitted.append(Omitted(text_of(pair.path), reason))
            continue
        left -= sum(entry.size for entry in pair[1:] if entry is not None)
        if left < 0:
            raise _too_large(max_bytes)
        (removals if pair.after is None else others).append(b"".join(_file(trees, pair)))
        files += 1
    # What goes comes first, so that a file may take the place of a directory and the other way round.
    data = b"".join(removals + others)
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return Patch(data, files, tuple(omitted))


def _too_large(max_bytes: int) -> RookeryError:
    return RookeryError(
        ErrorCode.INVALID_ARGUMENT,
        f"The changes are larger than {max_bytes >> 20} MiB as one patch: export them in parts, by path.",
    )


def _unfit(pair: Pair) -> str | None:
    """Why git's format cannot carry a difference; None when it can."""
    entry = pair.after or pair.before
    if entry is None or entry.kind == SKIPPED:
        return "not held by the checkpoint"
    if entry.kind == DIRECTORY:
        return "git keeps no empty directories and no modes of directories"
    if any(_reserved(name, entry) for name in pair.path.split(b"/")):
        return "git refuses to write this path"
    if pair.before is not None and pair.after is not None:
        same = pair.before.payload == pair.after.payload and pair.before.size == pair.after.size
        if same and git_mode(pair.before) == git_mode(pair.after):
            return "git keeps no permissions but the owner's to execute"
    return None


def _reserved(name: bytes, entry: Entry) -> bool:
    """Whether git takes a name for its own directory, on any file system that it guards against."""
    for part in name.split(b"\\"):
        text = "".join(c for c in text_of(part) if ord(c) not in _IGNORED_BY_HFS)
        plain = text.split(":")[0].rstrip(" .").lower()
        if plain in (".git", "git~1") or (entry.kind == SYMLINK and plain.startswith((".gitmodules", "gitmod~"))):
            return True
    return False


def _file(trees: Trees, pair: Pair) -> Iterator[bytes]:
    old = b"" if pair.before is None else _content(trees, pair.before)
    new = b"" if pair.after is None else _content(trees, pair.after)
    yield b"diff --git %s %s\n" % (quoted(b"a/" + pair.path), quoted(b"b/" + pair.path))
    yield mode_lines(pair)
    if old == new and pair.before is not None and pair.after is not None:
        return
    old_name = _NO_BLOB if pair.before is None else _blob_name(old)
    new_name = _NO_BLOB if pair.after is None else _blob_name(new)
    yield b"index %s..%s" % (old_name, new_name)
    if pair.before is not None and pair.after is not None and git_mode(pair.before) == git_mode(pair.after):
        yield b" " + git_mode(pair.after)
    yield b"\n"
    if old == new:
        return
    if any(b"\0" in data or len(data) > TEXT_BYTES for data in (old, new)):
        yield b"GIT binary patch\n"
        yield from _literal(new)
        yield from _literal(old)
    else:
        yield file_names(pair)
        yield from hunks(old, new)


def _content(trees: Trees, entry: Entry) -> bytes:
    return entry.payload if entry.kind == SYMLINK else read_content(trees.objects, entry, 0, entry.size)


def _blob_name(data: bytes) -> bytes:
    """What git calls this content. Its SHA-1 is git's choice of an identifier, no protection of ours."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest().encode()


def _literal(data: bytes) -> Iterator[bytes]:
    packed = zlib.compress(data)
    yield b"literal %d\n" % len(data)
    for start in range(0, len(packed), _LINE_BYTES):
        line = packed[start : start + _LINE_BYTES]
        # Each line is told its length by a letter, and padded to whole groups of four bytes.
        yield bytes([_LENGTHS[len(line) - 1]]) + base64.b85encode(line, pad=True) + b"\n"
    yield b"\n"
