"""Removing what no checkpoint needs any more, while others go on making checkpoints.

What is live: all that hangs on the given trees, on the trees that the indexes name (seen lately, perhaps not recorded
yet), and everything younger than a grace period. Whoever reuses an old object makes it young again, under the shared
lock; the sweep looks at an object's age and removes it under the exclusive lock, one shard at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from server.checkpoints.content import chunks_of
from server.checkpoints.index import recent_trees
from server.checkpoints.manifest import DIRECTORY, FILE, LARGE_FILE
from server.checkpoints.objects import ObjectStore
from server.checkpoints.trees import Trees
from server.checkpoints.work import Stop
from server.errors import RookeryError

_LOCK_TRIES: Final = 200
_LOCK_PAUSE_S: Final = 0.01

_log = logging.getLogger(__name__)


def collect(objects: ObjectStore, index_dir: Path, live: Iterable[str], grace_s: float, stop: Stop) -> int:
    """Remove dead objects and return how many bytes they held.

    A shard that others keep locked for more than about two seconds is left for the next time.

    Raises:
        OSError: the disk; nothing that is live was removed.
    """
    marked = _mark(objects, [bytes.fromhex(tree) for tree in live], _pinned(index_dir), stop)
    cutoff = time.time() - grace_s
    freed = _sweep_temporaries(objects, cutoff)
    for shard in sorted(objects.root.glob("[0-9a-f][0-9a-f]")):
        stop.check()
        dead = [path.name for path in shard.iterdir() if _digest(path) not in marked]
        for _ in range(_LOCK_TRIES if dead else 0):
            stop.check()
            with objects.exclusive() as locked:
                if locked:
                    freed += sum(_remove_old(objects.fd, f"{shard.name}/{name}", cutoff) for name in dead)
                    break
            time.sleep(_LOCK_PAUSE_S)
    return freed


def _digest(path: Path) -> bytes:
    try:
        return bytes.fromhex(path.parent.name + path.name)
    except ValueError:
        return b""


def _pinned(index_dir: Path) -> list[bytes]:
    return [tree for path in index_dir.glob("*.trees") for tree in recent_trees(path)]


def _mark(objects: ObjectStore, live: list[bytes], pinned: list[bytes], stop: Stop) -> set[bytes]:
    """The hashes of all objects that trees hang on."""
    trees = Trees(objects)
    marked: set[bytes] = set()
    waiting = [*live, *pinned]
    while waiting:
        stop.check()
        digest = waiting.pop()
        if digest in marked:
            continue
        marked.add(digest)
        with _damage_logged():
            for entry in trees.read(digest).entries:
                if entry.kind == DIRECTORY:
                    waiting.append(entry.payload)
                elif entry.kind == FILE:
                    marked.add(entry.payload)
                elif entry.kind == LARGE_FILE and entry.payload not in marked:
                    marked.add(entry.payload)
                    with _damage_logged():
                        marked.update(chunks_of(objects, entry))
    return marked


@contextlib.contextmanager
def _damage_logged() -> Iterator[None]:
    """What hangs below a damaged object cannot be reached by anyone, so it keeps nothing else from being removed."""
    try:
        yield
    except RookeryError as error:
        _log.warning("checkpoint_tree_damaged", extra={"detail": error.detail})


def _remove_old(root: int, path: str, cutoff: float) -> int:
    try:
        state = os.lstat(path, dir_fd=root)
        if state.st_mtime >= cutoff:
            return 0
        os.unlink(path, dir_fd=root)
    except FileNotFoundError:
        return 0
    return state.st_size


def _sweep_temporaries(objects: ObjectStore, cutoff: float) -> int:
    """Remove what writers that died left unfinished."""
    return sum(_remove_old(objects.fd, f"tmp/{path.name}", cutoff) for path in (objects.root / "tmp").iterdir())
