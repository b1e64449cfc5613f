"""What is done under a key (a session's id): taking, restoring and writing its tree. Runs in worker threads.

For each key the index directory holds ``KEY.index`` (what the tree looked like), ``KEY.trees`` (trees seen lately,
which the garbage collector spares), ``KEY.lock`` and, while a restore is under way, ``KEY.restore``: the journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from server.checkpoints import index as tree_index
from server.checkpoints.compare import differences
from server.checkpoints.descent import OPEN_DIRECTORY, Descent
from server.checkpoints.index import Index, Node
from server.checkpoints.records import Limits, PendingRestore, Restored, Snapshot
from server.checkpoints.removal import clear_directory, remove_directory
from server.checkpoints.restore import Outcome, Restore, plan
from server.checkpoints.scan import Scan
from server.checkpoints.trees import Trees
from server.checkpoints.work import Stop, TreeMovedError
from server.checkpoints.writer import Writer
from server.errors import ErrorCode, RookeryError

ATTEMPTS: Final = 3
"""How often work begins anew when the tree moves under it, before the caller is told that the session is busy."""

_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_STAGING: Final = re.compile(r"\.rookery-restore-[0-9a-f]{16}")

_log = structlog.get_logger(__name__)


class KeyedTrees:
    """The trees of all keys of one index directory."""

    def __init__(self, trees: Trees, index_dir: Path, limits: Limits) -> None:
        self._trees = trees
        self._objects = trees.objects
        self._index_dir = index_dir
        self._limits = limits
        index_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _file(self, key: str, kind: str) -> Path:
        if not _KEY.fullmatch(key):
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "A checkpoint key is made of letters, digits, - and _.")
        return self._index_dir / f"{key}.{kind}"

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold a key against all other tasks and processes; the system gives it back if we die.

        Raises:
            RookeryError: ``session_busy``: someone else holds it.
        """
        fd = os.open(self._file(key, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RookeryError(
                    ErrorCode.SESSION_BUSY, "A checkpoint or rewind of this session is under way: try again shortly."
                ) from error
            yield
        finally:
            os.close(fd)

    def take(self, key: str, tree: Path, stop: Stop) -> tuple[Snapshot, Node]:
        """Snapshot a tree; its key is held by the caller."""
        with self._objects.shared(stop), self._objects.batch() as batch:
            previous = self._previous(key)
            for attempt in range(ATTEMPTS):
                old = tree_index.load(self._file(key, "index"))
                if old is not None and not self._objects.exists(old.root.digest):
                    old = None
                try:
                    node, device, inode = Scan(self._trees, batch, self._limits, old, stop).read(_open_tree(tree))
                    break
                except TreeMovedError:
                    if attempt == ATTEMPTS - 1:
                        raise
            batch.flush()
            changed = sum(1 for _ in differences(self._trees, previous, node.digest, stop))
            self._saw(key, node.digest)
            tree_index.save(self._file(key, "index"), Index(device, inode, node))
            skipped = self._trees.skipped(node.digest, stop) if node.skipped else ()
        return Snapshot(node.digest.hex(), node.files, node.size, skipped, changed), node

    def _previous(self, key: str) -> bytes | None:
        recent = tree_index.recent_trees(self._file(key, "trees"))
        return recent[0] if recent and self._objects.exists(recent[0]) else None

    def _saw(self, key: str, digest: bytes) -> None:
        path = self._file(key, "trees")
        recent = tree_index.recent_trees(path)
        if recent[:1] != (digest,):
            tree_index.save_recent(path, (digest, *(tree for tree in recent if tree != digest)))

    def prepare_restore(self, key: str, tree: Path, tree_hash: str, stop: Stop) -> tuple[Snapshot, Node]:
        """Snapshot the present before a restore, once what a crashed one left behind is gone."""
        self._trees.root(tree_hash)
        journal = self._journal(key)
        if journal is not None:
            for place in (tree.parent, tree):
                remove_directory(place / journal["staging"])
        return self.take(key, tree, stop)

    def restore(
        self, key: str, tree: Path, tree_hash: str, owner: int | None, before: Snapshot, node: Node, stop: Stop
    ) -> Restored:
        """Make the tree what it was; ``node`` is what it is. The key is held by the caller."""
        outcome = Outcome()
        wanted = self._trees.root(tree_hash)
        for attempt in range(ATTEMPTS):
            if attempt:
                _, node = self.take(key, tree, stop)
            try:
                with self._objects.shared(stop):
                    self._restore(key, tree, wanted, owner, before, node, outcome, stop)
                break
            except TreeMovedError:
                if attempt == ATTEMPTS - 1:
                    raise
                outcome.kept.clear()
                outcome.missing.clear()
        self._saw(key, wanted)
        return Restored(
            tree_hash=tree_hash,
            before=before,
            written=outcome.written,
            removed=outcome.removed,
            kept=tuple(outcome.kept),
            missing=tuple(outcome.missing),
            separated=outcome.separated,
        )

    def _restore(
        self,
        key: str,
        tree: Path,
        wanted: bytes,
        owner: int | None,
        before: Snapshot,
        node: Node,
        outcome: Outcome,
        stop: Stop,
    ) -> None:
        steps = plan(self._trees, node.digest, wanted, stop)
        mode = self._trees.read(wanted).mode
        if not steps and mode == node.mode:
            self._file(key, "restore").unlink(missing_ok=True)
            return
        staging = _staging_place(tree) / f".rookery-restore-{secrets.token_hex(8)}"
        journal = {"tree_hash": wanted.hex(), "before": before.tree_hash, "staging": staging.name}
        tree_index.replace_file(self._file(key, "restore"), json.dumps(journal).encode(), flush=True)
        untouched = True
        try:
            staging.mkdir(mode=0o700)
            fd = os.open(staging, OPEN_DIRECTORY)
            try:
                run = Restore(self._trees, steps, fd, owner, outcome, stop)
                run.stage()
                untouched = False
                run.apply(_open_tree(tree), None if mode == node.mode else mode)
            finally:
                os.close(fd)
            untouched = True
        finally:
            try:
                remove_directory(staging)
            except (OSError, TreeMovedError) as error:
                _log.warning("restore_staging_left", detail=repr(error))
            if untouched:
                self._file(key, "restore").unlink(missing_ok=True)

    def _journal(self, key: str) -> dict[str, str] | None:
        try:
            journal = json.loads(self._file(key, "restore").read_bytes())
            fields = {name: str(journal[name]) for name in ("tree_hash", "before", "staging")}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            # It is written at once or not at all: a damaged one names no restore that could have begun.
            _log.warning("restore_journal_damaged", detail=repr(error))
            return None
        return fields if _STAGING.fullmatch(fields["staging"]) else None

    def pending(self, key: str) -> PendingRestore | None:
        """The restore that was begun under a key and not finished."""
        journal = self._journal(key)
        return None if journal is None else PendingRestore(journal["tree_hash"], journal["before"])

    def materialise(self, tree_hash: str, empty_dir: Path, owner: int | None, key: str | None, stop: Stop) -> int:
        """Write a tree into an empty directory."""
        root = self._trees.root(tree_hash)
        lock = contextlib.nullcontext() if key is None else self.locked(key)
        with lock, self._objects.shared(stop):
            fd = _open_tree(empty_dir)
            try:
                if os.listdir(fd):  # noqa: PTH208 - of a descriptor, which pathlib cannot
                    raise RookeryError(ErrorCode.INVALID_ARGUMENT, "The directory to write files into is not empty.")
                writer = Writer(self._trees, owner, stop)
                descent = Descent(os.dup(fd))
                try:
                    node = writer.tree(descent, root)
                except BaseException:
                    descent.close()
                    clear_directory(os.dup(fd))
                    raise
                descent.close()
                if key is not None:
                    found = os.fstat(fd)
                    self._saw(key, root)
                    tree_index.save(self._file(key, "index"), Index(found.st_dev, found.st_ino, node))
            finally:
                os.close(fd)
        return writer.written

    def forget(self, key: str) -> None:
        """Remove all that is kept under a key."""
        with self.locked(key):
            for kind in ("index", "trees", "restore", "lock"):
                self._file(key, kind).unlink(missing_ok=True)


def _open_tree(tree: Path) -> int:
    try:
        return os.open(tree, OPEN_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RookeryError(
            ErrorCode.SANDBOX_LOST, "The workspace of this session is gone: fork one of its checkpoints."
        ) from error


def _staging_place(tree: Path) -> Path:
    """Where to stage: beside the tree, out of the agent's reach; inside only if it is a file system of its own."""
    beside = tree.parent
    return beside if beside.stat().st_dev == tree.lstat().st_dev and os.access(beside, os.W_OK) else tree
