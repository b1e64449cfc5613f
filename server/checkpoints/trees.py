"""Stored directories as values: read, checked and remembered; and looking up a path in a tree."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from server.checkpoints.manifest import (
    DIRECTORY,
    EMPTY,
    KINDS,
    SKIPPED,
    SYMLINK,
    DamagedError,
    Directory,
    Entry,
    decode_directory,
    reason_of,
    valid_name,
)
from server.checkpoints.objects import ObjectStore
from server.checkpoints.records import Item, Kind, Skipped
from server.checkpoints.work import DamagedStoreError, Stop
from server.errors import ErrorCode, RookeryError

_REMEMBERED_ENTRIES: Final = 50_000
"""Entries of directories kept in memory: about 20 MB."""

MAX_SKIPPED: Final = 1000
"""Skipped entries that a snapshot lists by name."""


class Trees:
    """Directories of an object store. Safe to use from several threads."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self._known: OrderedDict[bytes, Directory] = OrderedDict()
        self._entries = 0
        self._lock = threading.Lock()

    def read(self, digest: bytes | None) -> Directory:
        """The directory of that hash; an empty one for None.

        Raises:
            RookeryError: ``storage_unavailable``: it is missing or damaged.
        """
        if digest is None:
            return EMPTY
        with self._lock:
            found = self._known.get(digest)
            if found is not None:
                self._known.move_to_end(digest)
                return found
        try:
            directory = decode_directory(self.objects.read(digest))
        except DamagedError as error:
            raise DamagedStoreError(f"object {digest.hex()}: {error}") from error
        self.remember(digest, directory)
        return directory

    def remember(self, digest: bytes, directory: Directory) -> None:
        """Keep a directory in memory: one that was just written will be compared soon."""
        with self._lock:
            if digest in self._known:
                return
            self._known[digest] = directory
            self._entries += len(directory.entries) + 1
            while self._entries > _REMEMBERED_ENTRIES:
                _, old = self._known.popitem(last=False)
                self._entries -= len(old.entries) + 1

    def root(self, tree_hash: str) -> bytes:
        """The hash of a tree as bytes, of one that is there.

        Raises:
            RookeryError: ``checkpoint_not_found``.
        """
        try:
            digest = bytes.fromhex(tree_hash)
        except ValueError:
            digest = b""
        if len(digest) != 32 or not self.objects.exists(digest):
            raise RookeryError(
                ErrorCode.CHECKPOINT_NOT_FOUND,
                "The files of this checkpoint are not kept any more: choose a later checkpoint.",
                detail=f"tree {tree_hash[:64]!r} is not in the store",
            )
        return digest

    def find(self, root: bytes, path: str) -> Entry | None:
        """The entry at ``path`` below ``root``; None for the root itself (``""`` or ``"."``).

        Raises:
            RookeryError: ``invalid_argument``: no path of a tree, or nothing is there.
        """
        found: Entry | None = None
        digest = root
        for name in split_path(path):
            if found is not None and found.kind != DIRECTORY:
                raise _nothing_at(path)
            entries = self.read(digest).entries
            found = next((entry for entry in entries if entry.name == name), None)
            if found is None:
                raise _nothing_at(path)
            digest = found.payload
        return found

    def skipped(self, root: bytes, stop: Stop, prefix: str = "") -> tuple[Skipped, ...]:
        """What a tree does not hold, at most :data:`MAX_SKIPPED` entries; looks only where something was skipped.

        Args:
            prefix: put before all paths.
        """
        out: list[Skipped] = []
        waiting: list[tuple[str, bytes]] = [(prefix, root)]
        while waiting and len(out) < MAX_SKIPPED:
            stop.check()
            prefix, digest = waiting.pop()
            for entry in self.read(digest).entries:
                if entry.kind == SKIPPED:
                    out.append(skipped_of(entry, prefix + text_of(entry.name)))
                elif entry.kind == DIRECTORY and entry.skipped:
                    waiting.append((f"{prefix}{text_of(entry.name)}/", entry.payload))
        return tuple(sorted(out[:MAX_SKIPPED], key=lambda skipped: skipped.path))

    def mode_of(self, entry: Entry) -> int:
        return self.read(entry.payload).mode if entry.kind == DIRECTORY else entry.mode

    def item(self, entry: Entry, path: str) -> Item:
        """An entry as listings show it."""
        return Item(
            path=path,
            kind=KINDS[entry.kind],
            mode=self.mode_of(entry),
            size=entry.size,
            mtime_ns=entry.mtime_ns,
            target=text_of(entry.payload) if entry.kind == SYMLINK else None,
            reason=reason_of(entry) if KINDS[entry.kind] is Kind.SKIPPED else None,
        )


def text_of(raw: bytes) -> str:
    """File name bytes as text, undecodable ones as surrogate escapes, whatever the locale."""
    return raw.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    """The inverse of :func:`text_of`."""
    return text.encode("utf-8", "surrogateescape")


def skipped_of(entry: Entry, path: str) -> Skipped:
    return Skipped(path, reason_of(entry), entry.size)


def split_path(path: str) -> list[bytes]:
    """The names that a relative path is made of.

    Raises:
        RookeryError: ``invalid_argument``: absolute, with ``..``, or no path at all.
    """
    try:
        names = [name for name in bytes_of(path).split(b"/") if name not in (b"", b".")]
    except UnicodeEncodeError as error:
        raise _no_path() from error
    if path.startswith("/") or not all(valid_name(name) for name in names):
        raise _no_path()
    return names


def _no_path() -> RookeryError:
    return RookeryError(
        ErrorCode.INVALID_ARGUMENT, "path must be relative to the workspace, without '..', as in src/main.py."
    )


def _nothing_at(path: str) -> RookeryError:
    return RookeryError(
        ErrorCode.INVALID_ARGUMENT,
        "Nothing is at this path in this checkpoint: list the files to see what is there.",
        detail=repr(path[:500]),
    )
