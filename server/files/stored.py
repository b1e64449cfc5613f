"""Files of a workspace that is left alone, or is no more, as this server keeps them: looked at without a sandbox."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from policies.types import LinkLookup
from server.checkpoints import Checkpoints, Item, Kind, Snapshot
from server.checkpoints.trees import bytes_of, text_of
from server.errors import ErrorCode, RookeryError
from server.files.judging import judged
from server.files.looking import Listing, Part, Seen, parts_below

T = TypeVar("T")

_KINDS: Final = {Kind.FILE: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "symlink"}


class StoredFiles:
    """Implements :class:`server.files.base.ReadableFiles`.

    Args:
        checkpoints: this server's engine.
        tree_hash: the tree that the workspace is, or was last.
    """

    def __init__(self, checkpoints: Checkpoints, tree_hash: str) -> None:
        self._checkpoints = checkpoints
        self._tree = tree_hash

    async def take(self) -> Snapshot:
        return await self._checkpoints.mirror.snapshot(self._tree)

    async def listing(self, parts: tuple[bytes, ...], depth: int, limit: int) -> Listing:
        found: list[Seen] = []
        await self._directory(parts)
        truncated = await self._walk(parts, depth, limit, found)
        return Listing(tuple(found), truncated)

    async def _walk(self, parts: tuple[bytes, ...], depth: int, limit: int, found: list[Seen]) -> bool:
        for item in await self._items(parts):
            if len(found) >= limit:
                return True
            below = bytes_of(item.path)
            target = None if item.target is None else bytes_of(item.target)
            kind = _KINDS.get(item.kind, "other")
            found.append(Seen(below, kind, item.size, item.mode, item.mtime_ns / 1e9, target))
            deeper = depth > 1 and item.kind is Kind.DIRECTORY
            if deeper and await self._walk(tuple(below.split(b"/")), depth - 1, limit, found):
                return True
        return False

    async def read(self, parts: tuple[bytes, ...], offset: int, limit: int) -> Part:
        if (await self._item(parts)).kind is not Kind.FILE:
            raise _error(errno.EINVAL)
        part = await self._checkpoints.read(self._tree, _path(parts), offset, limit)
        return Part(part.size, part.data)

    async def judged(self, judge: Callable[[LinkLookup], T]) -> T:
        return await judged(judge, self._links)

    async def _links(self, paths: Sequence[str]) -> dict[str, str | None]:
        return {path: await self._link(path) for path in paths}

    async def _link(self, path: str) -> str | None:
        parts = parts_below(path)
        if parts is None:
            return None
        try:
            return (await self._item(parts)).target
        except OSError:
            return None

    async def _directory(self, parts: tuple[bytes, ...]) -> None:
        if parts and (await self._item(parts)).kind is not Kind.DIRECTORY:
            raise _error(errno.ENOTDIR)

    async def _item(self, parts: tuple[bytes, ...]) -> Item:
        """What stands at a path.

        Raises:
            OSError: nothing does.
        """
        wanted = _path(parts)
        for item in await self._items(parts[:-1]):
            if item.path == wanted:
                return item
        raise _error(errno.ENOENT)

    async def _items(self, parts: tuple[bytes, ...]) -> tuple[Item, ...]:
        try:
            return await self._checkpoints.listing(self._tree, _path(parts))
        except RookeryError as error:
            if error.code is ErrorCode.INVALID_ARGUMENT:
                raise _error(errno.ENOENT) from error
            raise


def _path(parts: tuple[bytes, ...]) -> str:
    return text_of(b"/".join(parts))


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
