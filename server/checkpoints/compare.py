"""What differs between two trees, found by looking only where their hashes differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from server.checkpoints.content import read_content
from server.checkpoints.lines import count_changes
from server.checkpoints.manifest import DIRECTORY, FILE, LARGE_FILE, SYMLINK, Entry
from server.checkpoints.records import Change, ChangeKind, Changes
from server.checkpoints.trees import Trees, text_of
from server.checkpoints.work import Stop

LINES_FILE_BYTES: Final = 1 << 20
"""Lines are counted in files up to this size only."""

LINES_TOTAL_BYTES: Final = 32 << 20
"""Lines are counted until so much was read in all."""


class Pair(NamedTuple):
    """One path with what stands there in two trees; at least one is not None, and they differ."""

    path: bytes
    before: Entry | None
    after: Entry | None


def differences(trees: Trees, before: bytes | None, after: bytes | None, stop: Stop) -> Iterator[Pair]:
    """All paths that differ, in the order of their bytes within each directory, directories before what they hold.

    A directory on one side only is reported only if nothing is in it; one on both sides only if its own mode
    differs. A path that is a directory on one side and something else on the other comes up as removed and added.
    Times of modification are no difference.
    """
    waiting: list[tuple[bytes, bytes | None, bytes | None]] = [(b"", before, after)]
    while waiting:
        prefix, old_digest, new_digest = waiting.pop()
        if old_digest == new_digest:
            continue
        stop.check()
        old = {entry.name: entry for entry in trees.read(old_digest).entries}
        new = {entry.name: entry for entry in trees.read(new_digest).entries}
        below: list[tuple[bytes, bytes | None, bytes | None]] = []
        for name in sorted(old.keys() | new.keys()):
            one, other = old.get(name), new.get(name)
            if one is not None and other is not None and one.payload == other.payload and one.same(other):
                continue
            path = prefix + name
            if one is not None and other is not None and one.kind == DIRECTORY == other.kind:
                if trees.mode_of(one) != trees.mode_of(other):
                    yield Pair(path, one, other)
                below.append((path + b"/", one.payload, other.payload))
            elif one is not None and other is not None and _comparable(one, other):
                yield Pair(path, one, other)
            else:
                for side, entry in ((0, one), (1, other)):
                    if entry is None:
                        continue
                    pair = Pair(path, None, entry) if side else Pair(path, entry, None)
                    if entry.kind != DIRECTORY or not trees.read(entry.payload).entries:
                        yield pair
                    else:
                        ends = (None, entry.payload) if side else (entry.payload, None)
                        below.append((path + b"/", *ends))
        waiting.extend(reversed(below))


def _comparable(one: Entry, other: Entry) -> bool:
    """Whether two entries are of one kind, so that one is a changed form of the other."""
    files = (FILE, LARGE_FILE)
    return one.kind == other.kind or (one.kind in files and other.kind in files)


def compare(trees: Trees, before: bytes | None, after: bytes | None, stop: Stop, *, limit: int, lines: bool) -> Changes:
    """Count what differs and list the first ``limit`` paths, with line counts if asked for."""
    counts = dict.fromkeys(ChangeKind, 0)
    entries: list[Change] = []
    lines_left = LINES_TOTAL_BYTES
    total = 0
    for pair in differences(trees, before, after, stop):
        kind = kind_of(pair)
        counts[kind] += 1
        total += 1
        if total > limit:
            continue
        path = text_of(pair.path)
        change = Change(
            path,
            kind,
            None if pair.before is None else trees.item(pair.before, path),
            None if pair.after is None else trees.item(pair.after, path),
        )
        size = sum(entry.size for entry in pair[1:] if entry is not None)
        if lines and size <= lines_left:
            change = _with_lines(trees, pair, change)
            lines_left -= size
        entries.append(change)
    entries.sort(key=lambda change: change.path)
    return Changes(
        counts[ChangeKind.ADDED],
        counts[ChangeKind.REMOVED],
        counts[ChangeKind.CHANGED],
        tuple(entries),
        total > limit,
    )


def kind_of(pair: Pair) -> ChangeKind:
    if pair.before is None:
        return ChangeKind.ADDED
    return ChangeKind.REMOVED if pair.after is None else ChangeKind.CHANGED


def _with_lines(trees: Trees, pair: Pair, change: Change) -> Change:
    contents: list[bytes] = []
    for entry in (pair.before, pair.after):
        data = b"" if entry is None else text_content(trees, entry, LINES_FILE_BYTES)
        if data is None:
            return change
        contents.append(data)
    added, removed = count_changes(*contents)
    return replace(change, lines_added=added, lines_removed=removed)


def text_content(trees: Trees, entry: Entry, limit: int) -> bytes | None:
    """The content of a file or link as lines; None if it is binary, larger than ``limit``, or neither."""
    if entry.kind == SYMLINK:
        return entry.payload
    if entry.kind not in (FILE, LARGE_FILE) or entry.size > limit:
        return None
    data = read_content(trees.objects, entry, 0, entry.size)
    return None if b"\0" in data else data
