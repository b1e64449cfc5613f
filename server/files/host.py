"""Files of a workspace that is a directory of this host."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from policies.types import LinkLookup
from server.checkpoints import Checkpoints, PendingRestore, Restored, Snapshot
from server.checkpoints.records import Seal
from server.files.looking import Listing, Part, list_directory, read_link, read_part
from server.files.writing import write_whole
from server.sandboxes.bubblewrap.survivors import is_deserted

T = TypeVar("T")


class HostFiles:
    """Implements :class:`server.files.base.WorkspaceFiles`.

    Args:
        checkpoints: the engine of this process.
        key: the session's id.
        root: the workspace.
        owner: host uid and gid that what is written gets; None: the server's own.
    """

    def __init__(self, checkpoints: Checkpoints, key: str, root: Path, owner: int | None) -> None:
        self._checkpoints = checkpoints
        self._key = key
        self._root = root
        self._owner = owner
        self._known: str | None = None
        """The tree that the files are, where it is certain that nobody can have changed them."""

    async def take(self) -> Snapshot:
        return await self._checkpoints.take(self._key, self._root, known_as=self._known)

    async def restore(
        self,
        tree_hash: str,
        *,
        known_as: str | None = None,
        on_present: Callable[[Snapshot], Awaitable[None]] | None = None,
    ) -> Restored:
        known_as, self._known = known_as or self._known, None
        deserted = known_as is not None or await self._is_deserted()
        restored = await self._checkpoints.restore(
            self._key, self._root, tree_hash, owner=self._owner, known_as=known_as, on_present=on_present
        )
        if restored.exact and deserted:
            self._known = tree_hash
        return restored

    async def seal(self, known_as: str | None = None) -> None:
        # A directory of this host stays what it is; known to be the same, it need not be looked through for a rewind.
        known = known_as or self._known
        if known is None:
            if not await self._is_deserted():
                return
            known = (await self.take()).tree_hash
        await self._checkpoints.mirror.seal(self._key, Seal(known, token=""))
        self._known = known

    async def _is_deserted(self) -> bool:
        return await anyio.to_thread.run_sync(is_deserted, self._root)

    async def intact(self) -> bool:
        seal = await self._checkpoints.mirror.sealed(self._key)
        if seal is not None:
            await self._checkpoints.mirror.unseal(self._key)
            if seal.token is not None:
                self._known = seal.tree_hash
        return True

    async def pending(self) -> PendingRestore | None:
        return await self._checkpoints.pending(self._key)

    async def materialise(self, tree_hash: str) -> int:
        written = await self._checkpoints.materialise(tree_hash, self._root, owner=self._owner, key=self._key)
        self._known = tree_hash
        return written

    async def listing(self, parts: tuple[bytes, ...], depth: int, limit: int) -> Listing:
        return await anyio.to_thread.run_sync(list_directory, self._root, parts, depth, limit)

    async def read(self, parts: tuple[bytes, ...], offset: int, limit: int) -> Part:
        return await anyio.to_thread.run_sync(read_part, self._root, parts, offset, limit)

    async def write(self, parts: tuple[bytes, ...], data: bytes) -> bool:
        self._known = None
        await self._checkpoints.mirror.unseal(self._key)
        return await anyio.to_thread.run_sync(write_whole, self._root, parts, data, self._owner)

    async def judged(self, judge: Callable[[LinkLookup], T]) -> T:
        # A command names the same directories again and again: each is looked at once for one judgement.
        return judge(functools.cache(functools.partial(read_link, self._root)))
