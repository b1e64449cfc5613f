"""The checkpoint engine: whole-tree snapshots of host directories, kept outside of every sandbox.

One :class:`Checkpoints` serves all sessions of a process; several processes may share its directories. Each session
is a *key*, under which the engine remembers what the session's tree looked like. Records of checkpoints (ids, labels,
transcript lengths) are kept by the caller, which hands the tree hashes of all of them to :meth:`collect_garbage`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

import anyio

from server.checkpoints import rewind
from server.checkpoints.blocking import run_blocking
from server.checkpoints.compare import compare as compare_trees
from server.checkpoints.content import read_content
from server.checkpoints.forecast import forecast
from server.checkpoints.garbage import collect
from server.checkpoints.gitpatch import export_patch
from server.checkpoints.index import Index
from server.checkpoints.keyed import KeyedTrees
from server.checkpoints.manifest import DIRECTORY, FILE, LARGE_FILE
from server.checkpoints.mirror import Mirror
from server.checkpoints.objects import GRACE_S, ObjectStore
from server.checkpoints.records import (
    Changes,
    FileSlice,
    Forecast,
    Item,
    Limits,
    Patch,
    PendingRestore,
    Restored,
    Skipped,
    Snapshot,
    TextDiff,
)
from server.checkpoints.trees import Trees, bytes_of, text_of
from server.checkpoints.unified import PathFilter, text_diff
from server.checkpoints.work import Stop
from server.errors import ErrorCode, RookeryError

T = TypeVar("T")

MAX_LISTED: Final = 1000
"""Default number of entries that a comparison lists."""

MAX_READ_BYTES: Final = 16 << 20
"""Most bytes that one read of a file answers with."""

MAX_DIFF_BYTES: Final = 1 << 20
"""Default bound of a diff for reading."""

MAX_PATCH_BYTES: Final = 64 << 20
"""Default bound of a patch."""

THREADS: Final = 4
"""Worker threads that the engine takes at once."""


class Checkpoints:
    """Takes, compares and restores trees.

    All methods are safe to cancel: the work stops at the next file, and nothing goes on behind the caller's back.
    Any of them may raise ``storage_unavailable`` (disk full or failing; a checkpoint that is damaged). Methods that
    take a tree hash raise ``checkpoint_not_found`` when the store does not have it.

    Args:
        objects: the content of all trees.
        index_dir: made if missing; holds one small file for each key. Not reachable from any sandbox.
        limits: bounds of one tree.
    """

    def __init__(self, objects: ObjectStore, index_dir: Path, limits: Limits | None = None) -> None:
        self._objects = objects
        self._index_dir = index_dir
        self._trees = Trees(objects)
        bounds = limits or Limits()
        self._keyed = KeyedTrees(self._trees, index_dir, bounds)
        self._limiter = anyio.CapacityLimiter(THREADS)
        self.mirror = Mirror(self._keyed, bounds, self._run)
        """For trees that are taken in a sandbox that has its own engine."""

    async def _run(self, function: Callable[[Stop], T]) -> T:
        return await run_blocking(function, self._limiter)

    async def take(self, key: str, tree: Path, *, known_as: str | None = None) -> Snapshot:
        """Take a snapshot of ``tree``. Costs a look at each file's metadata, and reading what changed.

        Args:
            key: names the tree's index: the session's id.
            known_as: as in :meth:`restore`.

        Raises:
            RookeryError: ``session_busy``: another process or task works on the same key, or the tree does not come
                to rest; ``invalid_argument``: it is over its bounds; ``sandbox_lost``: it is gone.
        """

        def work(stop: Stop) -> Snapshot:
            with self._keyed.locked(key):
                unchanged = self._keyed.unchanged(key, tree, known_as, stop)
                return (unchanged or self._keyed.take(key, tree, stop))[0]

        return await self._run(work)

    async def restore(
        self,
        key: str,
        tree: Path,
        tree_hash: str,
        *,
        owner: int | None = None,
        known_as: str | None = None,
        on_present: Callable[[Snapshot], Awaitable[None]] | None = None,
    ) -> Restored:
        """Make ``tree`` exactly what it was: contents, modes, links, empty directories, nothing more.

        The present state is snapshotted first. Until everything that is needed is on the disk, the tree is not
        touched: a full disk leaves it as it was. After a crash, :meth:`pending` names the restore to run again.

        Args:
            owner: user and group id that restored files get; None: the server's own.
            known_as: the tree hash of the present state, if the caller knows that no process of the sandbox has run
                since that snapshot (one that sleeps, or is held still). It spares the look at every file.
            on_present: awaited with the present state before anything changes: record it as the checkpoint to undo
                with. What it raises ends the restore.

        Raises:
            RookeryError: as :meth:`take`.
        """

        def prepare(stop: Stop) -> tuple[Snapshot, Index]:
            self._trees.root(tree_hash)
            return rewind.prepare(self._keyed, key, tree, known_as, stop)

        with self._keyed.locked(key):
            before, index = await self._run(prepare)
            if on_present is not None:
                await on_present(before)
            return await self._run(
                lambda stop: rewind.Rewind(self._keyed, key, tree, owner, before, index, stop).run(tree_hash)
            )

    async def materialise(
        self, tree_hash: str, empty_dir: Path, *, owner: int | None = None, key: str | None = None
    ) -> int:
        """Write a tree into an existing empty directory: the files of a fork. Shares no file with any other tree.

        Args:
            owner: user and group id that all of it gets; None: the server's own.
            key: the fork's own key; with it, the first snapshot of the new tree need not read what was just written.

        Returns:
            Files, links and directories written. On failure the directory is left empty.

        Raises:
            RookeryError: ``invalid_argument``: the directory is not empty.
        """

        return await self._run(functools.partial(rewind.materialise, self._keyed, tree_hash, empty_dir, owner, key))

    async def compare(self, before: str | None, after: str, *, limit: int = MAX_LISTED, lines: bool = False) -> Changes:
        """What differs from one tree to another; None stands for an empty one.

        Args:
            limit: most entries to list; the counts are complete anyway.
            lines: also count added and removed lines of texts (up to a bound on file size and on all together).
        """
        return await self._run(
            lambda stop: compare_trees(
                self._trees, self._root(before), self._root(after), stop, limit=limit, lines=lines
            )
        )

    async def forecast(self, present: str, wanted: str) -> Forecast:
        """What a restore from one tree to another will leave in place, and what it cannot bring back."""
        return await self._run(
            lambda stop: forecast(self._trees, self._trees.root(present), self._trees.root(wanted), stop)
        )

    async def skipped(self, *trees: str | None, paths: Iterable[str] | None = None) -> tuple[Skipped, ...]:
        """What trees do not hold, so that no difference in it shows; the first 1,000 of each.

        Args:
            trees: None stands for an empty one.
            paths: only these and what is below them.

        Raises:
            RookeryError: ``invalid_argument``: a path is not relative.
        """
        wanted = PathFilter(paths)

        def work(stop: Stop) -> tuple[Skipped, ...]:
            roots = {self._trees.root(tree) for tree in trees if tree is not None}
            found = {one.path: one for root in roots for one in self._trees.skipped(root, stop)}
            return tuple(found[path] for path in sorted(found) if wanted(bytes_of(path)))

        return await self._run(work)

    async def diff(
        self,
        before: str | None,
        after: str,
        *,
        paths: Iterable[str] | None = None,
        max_bytes: int = MAX_DIFF_BYTES,
    ) -> TextDiff:
        """A unified diff for reading, cut at ``max_bytes``.

        Args:
            paths: only these and what is below them.

        Raises:
            RookeryError: ``invalid_argument``: a path is not relative.
        """
        wanted = PathFilter(paths)
        return await self._run(
            lambda stop: text_diff(self._trees, self._root(before), self._root(after), wanted, max_bytes, stop)
        )

    async def export_patch(
        self,
        before: str | None,
        after: str,
        *,
        paths: Iterable[str] | None = None,
        max_bytes: int = MAX_PATCH_BYTES,
    ) -> Patch:
        """A patch that ``git apply`` takes: texts, binary files, links, executable bits. Says what it leaves out.

        Raises:
            RookeryError: ``invalid_argument``: it would be larger than ``max_bytes``; a path is not relative.
        """
        wanted = PathFilter(paths)
        return await self._run(
            lambda stop: export_patch(self._trees, self._root(before), self._root(after), wanted, max_bytes, stop)
        )

    async def listing(self, tree_hash: str, path: str = "") -> tuple[Item, ...]:
        """The entries of a directory in a tree, by name; of a file or link, itself.

        Raises:
            RookeryError: ``invalid_argument``: nothing is there. Links are not followed.
        """

        def work(_stop: Stop) -> tuple[Item, ...]:
            root = self._trees.root(tree_hash)
            found = self._trees.find(root, path)
            if found is not None and found.kind != DIRECTORY:
                return (self._trees.item(found, path),)
            prefix = "" if found is None else path.strip("/") + "/"
            entries = self._trees.read(root if found is None else found.payload).entries
            return tuple(self._trees.item(entry, prefix + text_of(entry.name)) for entry in entries)

        return await self._run(work)

    async def read(self, tree_hash: str, path: str, offset: int = 0, limit: int = MAX_READ_BYTES) -> FileSlice:
        """A part of a file as it was in a tree, at most :data:`MAX_READ_BYTES`.

        Raises:
            RookeryError: ``invalid_argument``: no file is there, or offset or limit are negative.
        """
        if offset < 0 or limit < 0:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "offset and limit must not be negative.")

        def work(_stop: Stop) -> FileSlice:
            found = self._trees.find(self._trees.root(tree_hash), path)
            if found is None or found.kind not in (FILE, LARGE_FILE):
                raise RookeryError(
                    ErrorCode.INVALID_ARGUMENT,
                    "This is no file that can be read: list its directory to see what it is.",
                )
            data = read_content(self._objects, found, offset, min(limit, MAX_READ_BYTES))
            return FileSlice(data, found.size)

        return await self._run(work)

    async def pending(self, key: str) -> PendingRestore | None:
        """The restore that a crash interrupted, if any: call :meth:`restore` with its tree hash again.

        Files may be a mixture of both states until then; ``before`` is the tree to offer as undo.
        """
        return await self._run(lambda _stop: self._keyed.pending(key))

    async def forget(self, key: str) -> None:
        """Drop what is remembered under a key: its session is deleted. Idempotent."""

        await self._run(lambda _stop: self._keyed.forget(key))

    async def collect_garbage(self, live: Iterable[str], *, grace_s: float = GRACE_S) -> int:
        """Remove content that no tree needs, and return how many bytes it held. Safe beside work of all processes.

        Args:
            live: the tree hashes of all recorded checkpoints. Trees seen lately under any key stay in any case.
            grace_s: content younger than this stays.

        Raises:
            RookeryError: ``invalid_argument``: something in ``live`` is no tree hash; nothing was removed then.
        """
        trees = tuple(live)
        if any(not re.fullmatch(r"[0-9a-f]{64}", tree) for tree in trees):
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "A tree hash has 64 hexadecimal digits.")
        return await self._run(lambda stop: collect(self._objects, self._index_dir, trees, grace_s, stop))

    def _root(self, tree_hash: str | None) -> bytes | None:
        return None if tree_hash is None else self._trees.root(tree_hash)
