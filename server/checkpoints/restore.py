"""Bringing a tree back to what it was, exactly, in two phases.

First everything that has to be written is written into a staging directory on the same file system, outside the tree
where that is possible. If the disk is full, it shows here, and the tree is as it was. Then the staged entries are
renamed into place, and what must go is removed: short steps that need next to no room. A crash in between leaves a
journal (:mod:`server.checkpoints.engine`); a second run compares afresh and does what is left.

No existing file is ever opened for writing, so nothing is written through a link, hard or symbolic.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from server.checkpoints.descent import OWNER_ALL, Descent, unlocked
from server.checkpoints.manifest import DIRECTORY, FILE, LARGE_FILE, SKIPPED, Entry, reason_of
from server.checkpoints.records import Skipped
from server.checkpoints.removal import remove_known
from server.checkpoints.scan import Touched
from server.checkpoints.trees import Trees, skipped_of, text_of
from server.checkpoints.work import Stop, TreeMovedError
from server.checkpoints.writer import Writer

_NOT_AS_SEEN: Final = frozenset(
    {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ESTALE}
)
_OPEN_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Action(Enum):
    ENTER = "enter"
    """Go into a directory that both trees have."""
    LEAVE = "leave"
    """Go back; ``before`` and ``after`` are the directory's own entries."""
    REMOVE = "remove"
    PLACE = "place"
    """Put ``after`` where ``before`` is, or nothing."""
    TOUCH = "touch"
    """Same content, other mode or time."""
    KEEP = "keep"
    """What is there is held by no checkpoint and would be lost."""
    MISS = "miss"
    """What was there is held by no checkpoint."""


class Step(NamedTuple):
    action: Action
    path: bytes
    before: Entry | None
    after: Entry | None

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]


@dataclass
class Outcome:
    """What was done, so far."""

    written: int = 0
    removed: int = 0
    separated: int = 0
    kept: list[Skipped] = field(default_factory=list)
    missing: list[Skipped] = field(default_factory=list)


def touched_by(steps: Iterable[Step]) -> Touched:
    """The directories that steps work in."""
    root = Touched()
    inside = [root]
    for step in steps:
        if step.action is Action.ENTER:
            inside.append(inside[-1].setdefault(step.name, Touched()))
        elif step.action is Action.LEAVE:
            inside.pop()
    return root


def plan(trees: Trees, present: bytes, wanted: bytes, stop: Stop) -> list[Step]:
    """The steps from the tree that is there to the one that is wanted, in the order of doing them."""
    steps: list[Step] = []
    frames: list[tuple[bytes, Iterator[tuple[Entry | None, Entry | None]], Entry | None, Entry | None]] = [
        (b"", _pairs(trees, present, wanted), None, None)
    ]
    while frames:
        prefix, pairs, old, new = frames[-1]
        pair = next(pairs, None)
        if pair is None:
            frames.pop()
            if frames:
                steps.append(Step(Action.LEAVE, prefix[:-1], old, new))
            continue
        stop.check()
        before, after = pair
        name = (after or before or _never()).name
        path = prefix + name
        if before is not None and after is not None and before.kind == DIRECTORY == after.kind:
            steps.append(Step(Action.ENTER, path, before, after))
            frames.append((path + b"/", _pairs(trees, before.payload, after.payload), before, after))
            continue
        steps.extend(_steps(path, before, after))
    return steps


def _never() -> Entry:
    raise AssertionError("a pair of nothing and nothing")


def _pairs(trees: Trees, present: bytes, wanted: bytes) -> Iterator[tuple[Entry | None, Entry | None]]:
    """What differs between two directories, times of modification included. Removals first: they make room."""
    old = {entry.name: entry for entry in trees.read(present).entries}
    new = {entry.name: entry for entry in trees.read(wanted).entries}
    for name in sorted(old.keys() - new.keys()):
        yield old[name], None
    for name in sorted(new):
        if old.get(name) != new[name]:
            yield old.get(name), new[name]


def _steps(path: bytes, before: Entry | None, after: Entry | None) -> Iterator[Step]:
    if before is not None and before.kind == SKIPPED and reason_of(before).holds_content:
        yield Step(Action.KEEP, path, before, after)
    elif after is not None and after.kind == SKIPPED:
        # Something that can be brought back is left in place of what cannot; a special file holds nothing to lose.
        if not reason_of(after).holds_content and before is not None and before.kind != SKIPPED:
            yield Step(Action.REMOVE, path, before, None)
        yield Step(Action.MISS, path, before, after)
    elif after is None:
        yield Step(Action.REMOVE, path, before, None)
    elif before is not None and _same_content(before, after):
        yield Step(Action.TOUCH, path, before, after)
    elif before is not None and DIRECTORY in (before.kind, after.kind):
        yield Step(Action.REMOVE, path, before, None)
        yield Step(Action.PLACE, path, None, after)
    else:
        yield Step(Action.PLACE, path, before, after)


def _same_content(before: Entry, after: Entry) -> bool:
    return before.kind == after.kind and before.kind in (FILE, LARGE_FILE) and before.payload == after.payload


class Restore:
    """One run of a restore.

    Args:
        staging: descriptor of an empty directory on the tree's file system; stays open.
        outcome: what was done is added here.
    """

    def __init__(
        self, trees: Trees, steps: list[Step], staging: int, owner: int | None, outcome: Outcome, stop: Stop
    ) -> None:
        self._trees = trees
        self._steps = steps
        self._staging = staging
        self._stop = stop
        self._writer = Writer(trees, owner, stop)
        self.outcome = outcome

    def stage(self) -> None:
        """Write all that is new beside the tree.

        Raises:
            OSError: no room, or another failure of the disk; the tree is untouched.
            RookeryError: ``storage_unavailable``: the checkpoint is damaged; the tree is untouched.
        """
        descent = Descent(os.dup(self._staging))
        try:
            for number, step in enumerate(self._steps):
                if step.action is Action.PLACE and step.after is not None:
                    self._writer.entry(descent, _staged(number), step.after)
        finally:
            descent.close()

    def apply(self, root: int, root_mode: int | None) -> None:
        """Make the tree what it should be.

        Args:
            root: descriptor of the tree's root, taken over and closed.
            root_mode: its own permission bits, if they have to change.

        Raises:
            TreeMovedError: the tree is not as it was when the steps were planned; scan and plan again.
            OSError: the disk; a second run completes the work.
        """
        descent = Descent(root)
        try:
            for number, step in enumerate(self._steps):
                self._stop.check()
                self._do(descent, number, step)
            if root_mode is not None:
                descent.set_mode(root_mode)
        except OSError as error:
            if error.errno in _NOT_AS_SEEN:
                raise TreeMovedError from error
            raise
        finally:
            descent.close()

    def _do(self, descent: Descent, number: int, step: Step) -> None:
        before, after = step.before, step.after
        if step.action is Action.ENTER:
            descent.enter(step.name)
        elif step.action is Action.LEAVE and before is not None and after is not None:
            mode = self._trees.mode_of(after)
            if mode != self._trees.mode_of(before):
                descent.set_mode(mode)
                self.outcome.written += 1
            descent.leave()
        elif step.action is Action.REMOVE and before is not None:
            removed, kept = remove_known(descent, self._trees, before, text_of(step.path), self._stop)
            self.outcome.removed += removed
            self.outcome.kept.extend(kept)
        elif step.action is Action.PLACE and after is not None:
            self._place(descent.fd, _staged(number), step.name, text_of(step.path))
            if after.kind == DIRECTORY and after.skipped:
                inside = self._trees.skipped(after.payload, self._stop, text_of(step.path) + "/")
                self.outcome.missing.extend(inside)
        elif step.action is Action.TOUCH and after is not None:
            self._touch(descent, number, step.name, after)
        elif step.action is Action.KEEP and before is not None:
            self.outcome.kept.append(skipped_of(before, text_of(step.path)))
        elif step.action is Action.MISS and after is not None:
            self.outcome.missing.append(skipped_of(after, text_of(step.path)))

    def _place(self, parent: int, staged: bytes, name: bytes, path: str) -> None:
        if any(kept.path.startswith(path + "/") for kept in self.outcome.kept):
            # A directory here had to stay for what is in it.
            return
        try:
            os.rename(staged, name, src_dir_fd=self._staging, dst_dir_fd=parent)
        except PermissionError:
            # Moving a directory changes its "..": whoever is not root must be allowed to write in it for that.
            with unlocked(staged, self._staging, stat.S_IFDIR, OWNER_ALL):
                os.rename(staged, name, src_dir_fd=self._staging, dst_dir_fd=parent)
        self.outcome.written += 1

    def _touch(self, descent: Descent, number: int, name: bytes, after: Entry) -> None:
        parent = descent.fd
        handle = os.open(name, _OPEN_HANDLE, dir_fd=parent)
        try:
            state = os.fstat(handle)
            if not stat.S_ISREG(state.st_mode):
                raise TreeMovedError
            if state.st_nlink == 1:
                # Through the handle, so that it is this very file whatever its name leads to by now.
                path = Path(f"/proc/self/fd/{handle}")
                if stat.S_IMODE(state.st_mode) != after.mode:
                    path.chmod(after.mode)
                os.utime(path, ns=(after.mtime_ns, after.mtime_ns))
                self.outcome.written += 1
                return
        finally:
            os.close(handle)
        # Another name of the same file must keep its mode: this name gets a file of its own.
        staging = Descent(os.dup(self._staging))
        try:
            self._writer.entry(staging, _staged(number), after)
        finally:
            staging.close()
        os.rename(_staged(number), name, src_dir_fd=self._staging, dst_dir_fd=parent)
        self.outcome.written += 1
        self.outcome.separated += 1


def _staged(number: int) -> bytes:
    return b"%d" % number
