"""The seam to a workspace's files: what sessions do with them, wherever the sandbox is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from policies.types import LinkLookup
from server.checkpoints import PendingRestore, Restored, Snapshot
from server.files.looking import Listing, Part

T = TypeVar("T")


class ReadableFiles(Protocol):
    """The files of one session's workspace, for those who only look.

    Snapshots lie in the host's object store when :meth:`take` answers: comparing, reading and exporting them needs no
    sandbox. All methods raise ``sandbox_lost`` when the files are gone and ``storage_unavailable`` when a disk fails.
    Nothing here is ever led out of the workspace by what the agent made in it.
    """

    async def take(self) -> Snapshot:
        """Snapshot the whole tree; costs in proportion to what changed.

        Raises:
            RookeryError: ``session_busy``: other work on it is under way, or the tree does not come to rest;
                ``invalid_argument``: it is over its bounds.
        """
        ...

    async def listing(self, parts: tuple[bytes, ...], depth: int, limit: int) -> Listing:
        """Entries below a directory, as :func:`server.files.looking.list_directory` gives them.

        Raises:
            OSError: it is not there, is no directory, or is a link.
        """
        ...

    async def read(self, parts: tuple[bytes, ...], offset: int, limit: int) -> Part:
        """A part of a regular file.

        Raises:
            OSError: it is not there, is a link or no regular file.
        """
        ...

    async def judged(self, judge: Callable[[LinkLookup], T]) -> T:
        """What a pure judgement says that looks symbolic links up as the sandbox sees them.

        ``judge`` may be called several times, and the last answer counts. Between that call and the return of this
        method nothing else runs.
        """
        ...


class WorkspaceFiles(ReadableFiles, Protocol):
    """The files of one session's workspace, for those who work with them."""

    async def restore(
        self,
        tree_hash: str,
        *,
        known_as: str | None = None,
        on_present: Callable[[Snapshot], Awaitable[None]] | None = None,
    ) -> Restored:
        """Make the tree exactly what it was, as :meth:`server.checkpoints.Checkpoints.restore` does."""
        ...

    async def pending(self) -> PendingRestore | None:
        """The restore that a crash interrupted, if any: to be run again before anyone works with the files."""
        ...

    async def materialise(self, tree_hash: str) -> int:
        """Write a tree into the workspace, which is empty: the files of a fork.

        Returns:
            Files, links and directories written. On failure the workspace is empty again.
        """
        ...

    async def write(self, parts: tuple[bytes, ...], data: bytes) -> bool:
        """Write one file whole; whether there was none before.

        Raises:
            OSError: as :func:`server.files.writing.write_whole`.
        """
        ...

    async def seal(self, known_as: str | None = None) -> None:
        """Remember what the files are: they are left alone from now on, for no process is left in the sandbox.

        Elsewhere they must be the same again before anyone works with them, and where this fails, the same as the last
        that is known of them; on this host it spares the next rewind the look at all of them, where it is certain that
        nobody is left who could change them.

        Args:
            known_as: the tree that they are, if no process of the sandbox has run since that was taken.
        """
        ...

    async def intact(self) -> bool:
        """Whether they are what they were when they were left alone, read to the last byte; asked before any work.

        Once they were found so, they count as worked with until the next :meth:`seal`.
        """
        ...
