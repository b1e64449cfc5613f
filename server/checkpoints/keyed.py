"""What is kept under a key (a session's id), and taking snapshots under it. Runs in worker threads.

For each key the index directory holds ``KEY.index`` (what the tree looked like), ``KEY.trees`` (trees seen lately,
which the garbage collector spares), ``KEY.lock``, while a restore is under way ``KEY.restore``: the journal, and
while a tree that lies elsewhere is left alone ``KEY.sealed``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from server.checkpoints import index as tree_index
from server.checkpoints.compare import differences
from server.checkpoints.descent import OPEN_DIRECTORY
from server.checkpoints.index import Index, Node
from server.checkpoints.records import Limits, PendingRestore, Seal, Snapshot
from server.checkpoints.scan import Scan, Touched
from server.checkpoints.trees import Trees
from server.checkpoints.work import DamagedStoreError, Stop, TreeMovedError
from server.errors import ErrorCode, RookeryError

ATTEMPTS: Final = 3
"""How often work begins anew when the tree moves under it, before the caller is told that the session is busy."""

_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_STAGING: Final = re.compile(r"\.rookery-restore-[A-Za-z0-9_-]{1,128}")

_log = logging.getLogger(__name__)


class KeyedTrees:
    """The trees of all keys of one index directory."""

    def __init__(self, trees: Trees, index_dir: Path, limits: Limits) -> None:
        self.trees = trees
        self.objects = trees.objects
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

    def take(
        self,
        key: str,
        tree: Path,
        stop: Stop,
        *,
        known: Index | None = None,
        touched: Touched | None = None,
        save: bool = True,
        fresh: bool = False,
    ) -> tuple[Snapshot, Index]:
        """Snapshot a tree; its key is held by the caller.

        Args:
            known: what to build on, if not the index as it was saved.
            touched: the only directories that can differ from what is known; None: any.
            fresh: read every file anew, whatever the index says.
            save: whether to keep the new index. An old one stays right, it only makes the next snapshot dearer.
        """
        batch = self.objects.batch()
        with self.objects.shared(stop):
            previous = self.latest(key)
            for attempt in range(ATTEMPTS):
                afresh = fresh or attempt == ATTEMPTS - 1
                old = known if known is not None else None if afresh else self.index(key)
                try:
                    scan = Scan(self.trees, batch, self._limits, old, stop, touched=touched)
                    index = scan.read(open_tree(tree))
                    break
                except TreeMovedError:
                    if attempt == ATTEMPTS - 1:
                        raise
                except DamagedStoreError:
                    # Parts of the tree that the index builds on are gone: the last attempt reads everything afresh.
                    if old is None:
                        raise
                known = touched = None
            changed = sum(1 for _ in differences(self.trees, previous, index.root.digest, stop))
            self.saw(key, index.root.digest)
            if save:
                self.save_index(key, index)
        return self.snapshot(index.root, changed, stop), index

    def unchanged(self, key: str, tree: Path, known_as: str | None, stop: Stop) -> tuple[Snapshot, Index] | None:
        """The present state of a tree without a look at it; None where what is known is not of it.

        Args:
            known_as: the tree hash of the present state, where the caller vouches for it.
        """
        known = None if known_as is None else self.index(key)
        if known is None or known.root.digest.hex() != known_as:
            return None
        found = tree.lstat()
        if (known.device, known.inode) != (found.st_dev, found.st_ino):
            return None
        self.saw(key, known.root.digest)
        return self.snapshot(known.root, 0, stop), known

    def snapshot(self, node: Node, changed: int, stop: Stop) -> Snapshot:
        skipped = self.trees.skipped(node.digest, stop) if node.skipped else ()
        return Snapshot(node.digest.hex(), node.files, node.size, skipped, changed)

    def index(self, key: str) -> Index | None:
        """What is known of the tree of a key, if it can be built on."""
        found = tree_index.load(self._file(key, "index"))
        return found if found is not None and self.objects.exists(found.root.digest) else None

    def save_index(self, key: str, index: Index) -> None:
        tree_index.save(self._file(key, "index"), index)

    def latest(self, key: str) -> bytes | None:
        """The tree last seen under a key, if it is still there."""
        recent = tree_index.recent_trees(self._file(key, "trees"))
        return recent[0] if recent and self.objects.exists(recent[0]) else None

    def saw(self, key: str, digest: bytes) -> None:
        """Keep a tree from being collected for a while: its record may not be written yet."""
        path = self._file(key, "trees")
        recent = tree_index.recent_trees(path)
        if recent[:1] != (digest,):
            tree_index.save_recent(path, (digest, *(tree for tree in recent if tree != digest)))

    def begin(self, key: str, tree_hash: str, before: str, staging: str) -> None:
        """Write the journal of a restore, before anything changes."""
        journal = {"tree_hash": tree_hash, "before": before, "staging": staging}
        tree_index.replace_file(self._file(key, "restore"), json.dumps(journal).encode())

    def end(self, key: str) -> None:
        """Remove the journal: the restore is complete, or has changed nothing."""
        self._file(key, "restore").unlink(missing_ok=True)

    def journal(self, key: str) -> dict[str, str] | None:
        """The journal (``tree_hash``, ``before``, ``staging``) of a restore that was begun and not finished."""
        try:
            journal = json.loads(self._file(key, "restore").read_bytes())
            fields = {name: str(journal[name]) for name in ("tree_hash", "before", "staging")}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            # It is written at once or not at all: a damaged one names no restore that could have begun.
            _log.warning("restore_journal_damaged", extra={"detail": repr(error)})
            return None
        return fields if _STAGING.fullmatch(fields["staging"]) else None

    def pending(self, key: str) -> PendingRestore | None:
        """The restore that was begun under a key and not finished."""
        journal = self.journal(key)
        return None if journal is None else PendingRestore(journal["tree_hash"], journal["before"])

    def seal(self, key: str, seal: Seal) -> None:
        """Write down what a tree elsewhere is while it is left alone. It stays from being collected meanwhile."""
        tree_index.replace_file(self._file(key, "sealed"), json.dumps([seal.tree_hash, seal.token]).encode())

    def sealed(self, key: str) -> Seal | None:
        """What a tree elsewhere was when it was left alone; None while somebody works with it.

        Of a damaged one, as a power cut may leave it, the tree that was seen last is all that is known.
        """
        try:
            tree_hash, token = json.loads(self._file(key, "sealed").read_bytes())
            return Seal(bytes.fromhex(tree_hash).hex(), None if token is None else str(token))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            _log.warning("seal_damaged", extra={"detail": repr(error)})
        known = self.latest(key)
        return None if known is None else Seal(known.hex(), None)

    def unseal(self, key: str) -> None:
        """Somebody works with the tree from now on."""
        self._file(key, "sealed").unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        """Remove all that is kept under a key."""
        with self.locked(key):
            for kind in ("index", "trees", "restore", "sealed", "lock"):
                self._file(key, kind).unlink(missing_ok=True)


def open_tree(tree: Path) -> int:
    """Open the root of a tree.

    Raises:
        RookeryError: ``sandbox_lost``: it is gone.
    """
    try:
        return os.open(tree, OPEN_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RookeryError(
            ErrorCode.SANDBOX_LOST, "The workspace of this session is gone: fork one of its checkpoints."
        ) from error
