"""Which lines changed: Myers' algorithm for the shortest edit, with a bound on its work.

Source: E. W. Myers, "An O(ND) Difference Algorithm and Its Variations", 1986. Beyond :data:`MAX_EDITS` edits, what
differs between the common beginning and the common end is taken as replaced in one piece: a longer answer, still a
right one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

MAX_EDITS: Final = 1000
"""Edits looked for before the search is given up; the work grows with their square."""


class Block(NamedTuple):
    """Lines ``before_start:before_end`` become lines ``after_start:after_end``. At least one range is not empty."""

    before_start: int
    before_end: int
    after_start: int
    after_end: int


def split_lines(data: bytes) -> list[bytes]:
    """Lines with their line feeds, the only separator; the last may lack its own."""
    lines = data.split(b"\n")
    out = [line + b"\n" for line in lines[:-1]]
    if lines[-1]:
        out.append(lines[-1])
    return out


def count_changes(before: bytes, after: bytes) -> tuple[int, int]:
    """How many lines were added and removed."""
    added = removed = 0
    for block in changed_blocks(split_lines(before), split_lines(after)):
        added += block.after_end - block.after_start
        removed += block.before_end - block.before_start
    return added, removed


def changed_blocks(before: Sequence[bytes], after: Sequence[bytes]) -> list[Block]:
    """The changed ranges in order, as few lines as possible within the bound."""
    start = 0
    end_before, end_after = len(before), len(after)
    while start < end_before and start < end_after and before[start] == after[start]:
        start += 1
    while end_before > start and end_after > start and before[end_before - 1] == after[end_after - 1]:
        end_before -= 1
        end_after -= 1
    if start == end_before and start == end_after:
        return []
    if start in (end_before, end_after):
        return [Block(start, end_before, start, end_after)]
    numbers: dict[bytes, int] = {}
    old = [numbers.setdefault(line, len(numbers)) for line in before[start:end_before]]
    new = [numbers.setdefault(line, len(numbers)) for line in after[start:end_after]]
    trace = _search(old, new)
    if trace is None:
        return [Block(start, end_before, start, end_after)]
    return list(_joined(_edits(trace, len(old), len(new)), start))


def _search(old: list[int], new: list[int]) -> list[list[int]] | None:
    """How far each diagonal reaches after each number of edits; None when there are too many edits."""
    old_length, new_length = len(old), len(new)
    if abs(old_length - new_length) > MAX_EDITS:
        return None
    reach = {1: 0}
    trace: list[list[int]] = []
    for edits in range(min(old_length + new_length, MAX_EDITS) + 1):
        row: list[int] = []
        for diagonal in range(-edits, edits + 1, 2):
            below = reach.get(diagonal + 1, -1)
            left = reach.get(diagonal - 1, -1)
            x = below if diagonal == -edits or (diagonal != edits and left < below) else left + 1
            y = x - diagonal
            while x < old_length and y < new_length and old[x] == new[y]:
                x += 1
                y += 1
            reach[diagonal] = x
            row.append(x)
            if x >= old_length and y >= new_length:
                trace.append(row)
                return trace
        trace.append(row)
    return None


def _edits(trace: list[list[int]], x: int, y: int) -> list[tuple[int, int, int, int]]:
    """The single edits ``(x, y) → (x, y)``, first to last, read off the trace backwards."""
    out: list[tuple[int, int, int, int]] = []
    for edits in range(len(trace) - 1, 0, -1):
        row = trace[edits - 1]
        diagonal = x - y

        def reach(of: int, row: list[int] = row, edits: int = edits) -> int:
            at = (of + edits - 1) // 2
            return row[at] if 0 <= at < len(row) and (of + edits - 1) % 2 == 0 else -1

        from_below = diagonal == -edits or (diagonal != edits and reach(diagonal - 1) < reach(diagonal + 1))
        previous = diagonal + 1 if from_below else diagonal - 1
        before_x = reach(previous)
        before_y = before_x - previous
        after_x, after_y = (before_x, before_y + 1) if from_below else (before_x + 1, before_y)
        out.append((before_x, before_y, after_x, after_y))
        x, y = before_x, before_y
    out.reverse()
    return out


def _joined(edits: list[tuple[int, int, int, int]], offset: int) -> Iterator[Block]:
    """Edits that touch each other, as blocks."""
    block: Block | None = None
    for x, y, next_x, next_y in edits:
        if block is not None and (block.before_end, block.after_end) == (x + offset, y + offset):
            block = block._replace(before_end=next_x + offset, after_end=next_y + offset)
            continue
        if block is not None:
            yield block
        block = Block(x + offset, next_x + offset, y + offset, next_y + offset)
    if block is not None:
        yield block
