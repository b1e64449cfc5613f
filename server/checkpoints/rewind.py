"""Restores and forks as a whole: the steps around writing, and what is left behind when one of them fails.

The order of a restore: snapshot the present (unless it is known) · hand it to the caller, who records it · write the
journal · stage · apply · read back what was touched · remove the staging directory and the journal. A crash anywhere
after the journal leaves it in place, and the same restore can be run again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from pathlib import Path

from server.checkpoints import index as tree_index
from server.checkpoints.crew import Crew
from server.checkpoints.descent import OPEN_DIRECTORY, Descent
from server.checkpoints.index import Index, Node
from server.checkpoints.keyed import ATTEMPTS, KeyedTrees, open_tree
from server.checkpoints.records import Restored, Skipped, Snapshot
from server.checkpoints.removal import clear_directory, remove_directory
from server.checkpoints.restore import Outcome, Restore, plan, touched_by
from server.checkpoints.trees import Trees
from server.checkpoints.work import Stop, TreeMovedError
from server.checkpoints.writer import Writer
from server.errors import ErrorCode, RookeryError

_log = logging.getLogger(__name__)


def prepare(keyed: KeyedTrees, key: str, tree: Path, known_as: str | None, stop: Stop) -> tuple[Snapshot, Index]:
    """Snapshot the present before a restore, once what a crashed one left behind is gone. The key is held.

    Args:
        known_as: the tree hash of the present state, where the caller vouches for it.
    """
    journal = keyed.journal(key)
    beside = _staging(tree.parent, key)
    remove_directory(beside)
    if journal is not None:
        if journal["staging"] != beside.name:
            remove_directory(tree / journal["staging"])
    elif (unchanged := keyed.unchanged(key, tree, known_as, stop)) is not None:
        return unchanged
    return keyed.take(key, tree, stop, save=False)


class Rewind:
    """One restore of one tree. The key is held by the caller.

    Args:
        before: the present state, as recorded for undoing.
        index: the same, as the engine knows it.
    """

    def __init__(
        self, keyed: KeyedTrees, key: str, tree: Path, owner: int | None, before: Snapshot, index: Index, stop: Stop
    ) -> None:
        self._keyed = keyed
        self._trees = keyed.trees
        self._key = key
        self._tree = tree
        self._owner = owner
        self._before = before
        self._index = index
        self._stop = stop

    def run(self, tree_hash: str) -> Restored:
        """Make the tree what it was.

        Raises:
            TreeMovedError: it does not come to rest.
            OSError: the disk. The tree is as it was, or the journal is in place.
        """
        wanted = self._trees.root(tree_hash)
        outcome = Outcome()
        exact = False
        for attempt in range(ATTEMPTS):
            if attempt:
                _, self._index = self._keyed.take(self._key, self._tree, self._stop, save=False)
            try:
                exact = self._once(wanted, outcome)
                break
            except TreeMovedError:
                if attempt == ATTEMPTS - 1:
                    raise
                outcome.kept.clear()
                outcome.missing.clear()
        return Restored(
            tree_hash=tree_hash,
            exact=exact,
            before=self._before,
            written=outcome.written,
            removed=outcome.removed,
            kept=tuple(sorted(outcome.kept, key=_path)),
            missing=tuple(sorted(outcome.missing, key=_path)),
            separated=outcome.separated,
        )

    def _once(self, wanted: bytes, outcome: Outcome) -> bool:
        present = self._index.root
        steps = plan(self._trees, present.digest, wanted, self._stop)
        mode = self._trees.read(wanted).mode
        new_mode = None if mode == present.mode else mode
        if not steps and new_mode is None:
            self._keyed.save_index(self._key, self._index)
            self._keyed.end(self._key)
            return True
        staging = _staging_place(self._tree, self._key)
        self._keyed.begin(self._key, wanted.hex(), self._before.tree_hash, staging.name)
        untouched = True
        try:
            staging.mkdir(mode=0o700)
            fd = os.open(staging, OPEN_DIRECTORY)
            try:
                with self._keyed.objects.shared(self._stop):
                    run = Restore(self._trees, steps, fd, self._owner, outcome, self._stop)
                    run.stage()
                    untouched = False
                    run.apply(open_tree(self._tree), new_mode)
            finally:
                os.close(fd)
        finally:
            self._clear(staging)
            if untouched:
                self._keyed.end(self._key)
        # Reading back what was touched proves it, and spares the next snapshot from doing so.
        _, self._index = self._keyed.take(
            self._key, self._tree, self._stop, known=self._index, touched=touched_by(steps)
        )
        self._keyed.end(self._key)
        return self._index.root.digest == wanted

    def _clear(self, staging: Path) -> None:
        try:
            remove_directory(staging)
        except (OSError, TreeMovedError) as error:
            # The next restore under this key tries again.
            _log.warning("restore_staging_left", extra={"detail": repr(error)})


def _path(skipped: Skipped) -> str:
    return skipped.path


def materialise(
    keyed: KeyedTrees, tree_hash: str, empty_dir: Path, owner: int | None, key: str | None, stop: Stop
) -> int:
    """Write a tree into an empty directory; on failure the directory is empty again."""
    root = keyed.trees.root(tree_hash)
    with contextlib.nullcontext() if key is None else keyed.locked(key), keyed.objects.shared(stop):
        fd = open_tree(empty_dir)
        try:
            if os.listdir(fd):  # noqa: PTH208 - of a descriptor, which pathlib cannot
                raise RookeryError(ErrorCode.INVALID_ARGUMENT, "The directory to write files into is not empty.")
            written, node = _fill(keyed.trees, fd, root, owner, stop)
            if key is not None:
                tree_index.distrust_recent(node, time.time_ns())
                found = os.fstat(fd)
                keyed.saw(key, root)
                keyed.save_index(key, Index(found.st_dev, found.st_ino, node))
        finally:
            os.close(fd)
    return written


def _fill(trees: Trees, fd: int, root: bytes, owner: int | None, stop: Stop) -> tuple[int, Node]:
    descent = Descent(os.dup(fd))
    try:
        with Crew(stop) as crew:
            writer = Writer(trees, owner, stop, crew)
            node = writer.tree(descent, root)
    except BaseException:
        descent.close()
        clear_directory(os.dup(fd))
        raise
    finally:
        descent.close()
    return writer.written, node


def _staging(beside: Path, key: str) -> Path:
    return beside / f".rookery-restore-{key}"


def _staging_place(tree: Path, key: str) -> Path:
    """Where to stage: beside the tree, out of the agent's reach; inside only if it is a file system of its own.

    Inside, the name cannot be known before, so that nothing of the agent's is in its place.
    """
    beside = tree.parent
    if beside.stat().st_dev == tree.lstat().st_dev and os.access(beside, os.W_OK):
        return _staging(beside, key)
    return _staging(tree, secrets.token_hex(16))
