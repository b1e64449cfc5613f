"""Unified diffs: hunks of changed lines with their surroundings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from server.checkpoints.compare import Pair, differences, text_content
from server.checkpoints.lines import Block, changed_blocks, split_lines
from server.checkpoints.manifest import DIRECTORY, SKIPPED, SYMLINK, Entry
from server.checkpoints.records import TextDiff
from server.checkpoints.trees import Trees, split_path
from server.checkpoints.work import Stop

CONTEXT: Final = 3
"""Unchanged lines shown around a change."""

TEXT_BYTES: Final = 8 << 20
"""A larger file is treated as binary."""

_NO_NEWLINE: Final = b"\\ No newline at end of file\n"
_SPECIAL: Final = {0x22: b'\\"', 0x5C: b"\\\\"}


def hunks(before: bytes, after: bytes) -> Iterator[bytes]:
    """The hunks that turn one text into another."""
    old, new = split_lines(before), split_lines(after)
    for group in _groups(changed_blocks(old, new)):
        start = max(group[0].before_start - CONTEXT, 0)
        lead = group[0].before_start - start
        end = min(group[-1].before_end + CONTEXT, len(old))
        tail = end - group[-1].before_end
        new_start = group[0].after_start - lead
        new_end = group[-1].after_end + tail
        out = [b"@@ -%s +%s @@\n" % (_range(start, end), _range(new_start, new_end))]
        position = start
        for block in group:
            out.extend(_line(b" ", line) for line in old[position : block.before_start])
            out.extend(_line(b"-", line) for line in old[block.before_start : block.before_end])
            out.extend(_line(b"+", line) for line in new[block.after_start : block.after_end])
            position = block.before_end
        out.extend(_line(b" ", line) for line in old[position:end])
        yield b"".join(out)


def _groups(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Blocks whose surroundings touch share a hunk."""
    group: list[Block] = []
    for block in blocks:
        if group and block.before_start - group[-1].before_end > 2 * CONTEXT:
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _range(start: int, end: int) -> bytes:
    # An empty range is named by the line before it.
    return b"%d,%d" % (start + 1 if end > start else start, end - start)


def _line(sign: bytes, line: bytes) -> bytes:
    return sign + line if line.endswith(b"\n") else sign + line + b"\n" + _NO_NEWLINE


def quoted(path: bytes) -> bytes:
    """A path as git writes it in a patch: in double quotes with escapes where it holds anything unusual."""
    if all(0x20 < byte < 0x7F and byte not in _SPECIAL for byte in path):
        return path
    return b'"' + b"".join(_SPECIAL.get(byte) or _escaped(byte) for byte in path) + b'"'


def _escaped(byte: int) -> bytes:
    return bytes([byte]) if 0x20 <= byte < 0x7F else b"\\%03o" % byte


def git_mode(entry: Entry) -> bytes:
    """The mode as git knows it: link, program or plain file."""
    if entry.kind == SYMLINK:
        return b"120000"
    return b"100755" if entry.mode & 0o100 else b"100644"


def mode_lines(pair: Pair) -> bytes:
    """The lines of a patch that say that a file is new, gone, or has another mode."""
    if pair.before is None and pair.after is not None:
        return b"new file mode " + git_mode(pair.after) + b"\n"
    if pair.after is None and pair.before is not None:
        return b"deleted file mode " + git_mode(pair.before) + b"\n"
    if pair.before is not None and pair.after is not None and git_mode(pair.before) != git_mode(pair.after):
        return b"old mode %s\nnew mode %s\n" % (git_mode(pair.before), git_mode(pair.after))
    return b""


def file_names(pair: Pair) -> bytes:
    """The ``---`` and ``+++`` lines."""
    old = b"/dev/null" if pair.before is None else quoted(b"a/" + pair.path)
    new = b"/dev/null" if pair.after is None else quoted(b"b/" + pair.path)
    return b"--- %s\n+++ %s\n" % (old, new)


class PathFilter:
    """Which paths are asked for: those given and all below them; all, if none are given.

    Raises:
        RookeryError: ``invalid_argument``: one of them is no relative path.
    """

    def __init__(self, paths: Iterable[str] | None) -> None:
        self._wanted = None if paths is None else [b"/".join(split_path(path)) for path in paths]

    def __call__(self, path: bytes) -> bool:
        if self._wanted is None:
            return True
        return any(not wanted or path == wanted or path.startswith(wanted + b"/") for wanted in self._wanted)


def text_diff(
    trees: Trees, before: bytes | None, after: bytes | None, wanted: PathFilter, max_bytes: int, stop: Stop
) -> TextDiff:
    """The difference between two trees for reading, at most ``max_bytes`` of it (cut at a line)."""
    parts: list[bytes] = []
    size = 0
    for pair in differences(trees, before, after, stop):
        if not wanted(pair.path):
            continue
        for part in _shown(trees, pair):
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                kept = b"".join(parts)[:max_bytes]
                kept = kept[: kept.rfind(b"\n") + 1]
                return TextDiff(kept.decode("utf-8", "replace"), True)
    return TextDiff(b"".join(parts).decode("utf-8", "replace"), False)


def _shown(trees: Trees, pair: Pair) -> Iterator[bytes]:
    names = quoted(b"a/" + pair.path), quoted(b"b/" + pair.path)
    yield b"diff --git %s %s\n" % names
    one = pair.before or pair.after
    if one is None or one.kind in (DIRECTORY, SKIPPED):
        yield b"%s directory or special file\n" % (
            b"new" if pair.before is None else b"deleted" if pair.after is None else b"changed"
        )
        return
    yield mode_lines(pair)
    contents: list[bytes] = []
    for entry in (pair.before, pair.after):
        data = b"" if entry is None else text_content(trees, entry, TEXT_BYTES)
        if data is None:
            yield b"Binary files %s and %s differ\n" % (
                b"/dev/null" if pair.before is None else names[0],
                b"/dev/null" if pair.after is None else names[1],
            )
            return
        contents.append(data)
    if contents[0] != contents[1]:
        yield file_names(pair)
        yield from hunks(*contents)
