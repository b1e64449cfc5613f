"""The files' engine inside a sandbox: the checkpoint engine of this package, asked over its standard streams.

It is shipped from our own package (:mod:`server.files.shipment`), runs as root, and keeps objects and indexes in a
directory that the agent cannot reach. It needs the standard library only. It trusts its standard input as much as
root's shell does; nothing here trusts the workspace.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from server.checkpoints import rewind
from server.checkpoints.exchange import (
    Piece,
    Unpacking,
    check,
    decode_pieces,
    encode_pieces,
    lacking,
    novelties,
    packed,
)
from server.checkpoints.garbage import collect
from server.checkpoints.index import replace_file
from server.checkpoints.keyed import KeyedTrees
from server.checkpoints.objects import ObjectStore
from server.checkpoints.records import Limits
from server.checkpoints.trees import Trees
from server.checkpoints.work import Stop, explained
from server.errors import ErrorCode, RookeryError
from server.files.frames import PART, FramingError, Kind, Reader, data_frames, decoded, frame, message
from server.files.looking import list_directory, read_link, read_part
from server.files.writing import write_whole

INPUT: Final = 0
OUTPUT: Final = 1


class GoneError(Exception):
    """The other end went away."""


class Line:
    """The engine's end of the conversation."""

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._reader = Reader()
        self.answered = False
        """Whether anything was sent since the last request began."""

    def send(self, **fields: Any) -> None:
        self.answered = True
        self._write(message(fields))

    def send_data(self, parts: Iterator[bytes]) -> None:
        """Send data, gathered into frames of a good size."""
        self.answered = True
        gathered = bytearray()
        for part in parts:
            gathered += part
            if len(gathered) >= PART:
                for piece in data_frames(bytes(gathered)):
                    self._write(piece)
                gathered.clear()
        for piece in data_frames(bytes(gathered)):
            self._write(piece)
        self._write(frame(Kind.END))

    def receive(self) -> dict[str, Any]:
        kind, payload = self._next()
        if kind is not Kind.MESSAGE:
            raise FramingError("a message was due")
        return decoded(payload)

    def receive_data(self) -> Iterator[bytes]:
        while True:
            kind, payload = self._next()
            if kind is Kind.END:
                return
            if kind is not Kind.DATA:
                raise FramingError("data was due")
            yield payload

    def _next(self) -> tuple[Kind, bytes]:
        while (found := self._reader.next()) is None:
            data = os.read(self._source, PART)
            if not data:
                raise GoneError
            self._reader.feed(data)
        return found

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._target, view) :]
        except BrokenPipeError as error:
            raise GoneError from error


class Engine:
    """Answers requests on a workspace, one at a time.

    Args:
        line: to the server.
        root: the workspace.
        home: of objects and indexes; made if missing, for root alone.
    """

    def __init__(self, line: Line, root: Path, home: Path) -> None:
        self._line = line
        self._root = root
        self._home = home
        self._stop = Stop()
        self._trees = Trees(ObjectStore(home / "objects"))
        self._operations: dict[str, Callable[[dict[str, Any]], None]] = {
            "ping": lambda _request: self._line.send(ready=True),
            "take": self._take,
            "seal": self._seal,
            "look": self._look,
            "restore": self._restore,
            "pending": self._pending,
            "materialise": self._materialise,
            "collect": self._collect,
            "list": self._list,
            "read": self._read,
            "write": self._write,
            "links": self._links,
        }

    def serve(self) -> None:
        """Answer until the other end goes away."""
        self._line.send(ready=True)
        while True:
            request = self._line.receive()
            self._line.answered = False
            try:
                self._operations[request["do"]](request)
            except (GoneError, FramingError):
                raise
            except Exception as error:
                told = failure_fields(error)
                # In the midst of an exchange nobody knows any more what is due: the server begins another one.
                ready = not self._line.answered
                self._line.send(error=told, ready=ready)
                if not ready:
                    raise GoneError from error

    def _keyed(self, request: dict[str, Any]) -> KeyedTrees:
        return KeyedTrees(self._trees, self._home / "indexes", Limits(**request["limits"]))

    def _take(self, request: dict[str, Any]) -> None:
        keyed, key = self._keyed(request), request["key"]
        with keyed.locked(key):
            snapshot, _ = keyed.take(key, self._root, self._stop)
            self._line.send(tree=snapshot.tree_hash, changed=snapshot.changed)
            self._give(request["base"], snapshot.tree_hash)

    def _seal(self, request: dict[str, Any]) -> None:
        replace_file(self._home / "seal", str(request["token"]).encode())
        self._line.send(sealed=True)

    def _look(self, request: dict[str, Any]) -> None:
        """What the tree is, by every byte of it, and which seal lies beside it."""
        keyed, key = self._keyed(request), request["key"]
        with keyed.locked(key):
            snapshot, _ = keyed.take(key, self._root, self._stop, fresh=True)
        try:
            token = (self._home / "seal").read_bytes().decode("ascii", "replace")
        except FileNotFoundError:
            token = None
        self._line.send(tree=snapshot.tree_hash, token=token)

    def _restore(self, request: dict[str, Any]) -> None:
        keyed, key = self._keyed(request), request["key"]
        with keyed.locked(key):
            before, index = rewind.prepare(keyed, key, self._root, request["known_as"], self._stop)
            self._line.send(tree=before.tree_hash, changed=before.changed)
            self._give(request["base"], before.tree_hash)
            wanted = self._receive_tree(before.tree_hash)
            run = rewind.Rewind(keyed, key, self._root, request["owner"], before, index, self._stop)
            restored = run.run(wanted)
            self._line.send(
                exact=restored.exact,
                written=restored.written,
                removed=restored.removed,
                separated=restored.separated,
                kept=[dataclasses.astuple(skipped) for skipped in restored.kept],
                missing=[dataclasses.astuple(skipped) for skipped in restored.missing],
            )

    def _pending(self, request: dict[str, Any]) -> None:
        found = self._keyed(request).pending(request["key"])
        self._line.send(pending=None if found is None else [found.tree_hash, found.before])

    def _materialise(self, request: dict[str, Any]) -> None:
        keyed, key = self._keyed(request), request["key"]
        self._line.send(go=True)
        wanted = self._receive_tree(None)
        written = rewind.materialise(keyed, wanted, self._root, request["owner"], key, self._stop)
        self._line.send(written=written)

    def _collect(self, request: dict[str, Any]) -> None:
        # Trees that the indexes name stay; everything that was ever taken lies at the server too.
        objects, indexes = self._trees.objects, self._home / "indexes"
        self._line.send(freed=collect(objects, indexes, (), request["grace_s"], self._stop))

    def _give(self, base: str | None, tree: str) -> None:
        """Hand over what the server lacks of a tree; nothing where it is the very tree that it has."""
        if base == tree:
            return
        root = bytes.fromhex(tree)
        pieces = self._novelties(None if base is None else bytes.fromhex(base), root)
        self._line.send_data(iter([encode_pieces(pieces)]))
        wanted = b"".join(self._line.receive_data())
        if len(wanted) != len(pieces):
            raise FramingError("an answer to another list of objects")
        chosen = [piece for piece, flag in zip(pieces, wanted, strict=True) if flag]
        self._line.send_data(packed(self._trees.objects, chosen, self._stop))

    def _novelties(self, base: bytes | None, root: bytes) -> list[Piece]:
        if base is not None and self._trees.objects.exists(base):
            try:
                return novelties(self._trees, base, root, self._stop)
            except RookeryError:
                # Parts of the older tree were collected here; the newer one is whole.
                pass
        return novelties(self._trees, None, root, self._stop)

    def _receive_tree(self, base: str | None) -> str:
        """Take from the server what is lacking here of a tree; its hash."""
        tree = str(self._line.receive()["tree"])
        root = bytes.fromhex(tree)
        objects = self._trees.objects
        pieces = decode_pieces(b"".join(self._line.receive_data()))
        lacks = lacking(objects, pieces, self._stop)
        self._line.send_data(iter([bytes(lacks)]))
        unpacking = Unpacking(objects, [piece for piece, lack in zip(pieces, lacks, strict=True) if lack])
        for part in self._line.receive_data():
            unpacking.feed(part, self._stop)
        unpacking.finish()
        check(self._trees, None if base is None else bytes.fromhex(base), root, sys.maxsize, self._stop)
        return tree

    def _list(self, request: dict[str, Any]) -> None:
        found = list_directory(self._root, names_of(request), request["depth"], request["limit"])
        entries = [
            [
                _text(seen.path),
                seen.kind,
                seen.size,
                seen.mode,
                seen.mtime,
                None if seen.target is None else _text(seen.target),
            ]
            for seen in found.entries
        ]
        self._line.send(entries=entries, truncated=found.truncated)

    def _read(self, request: dict[str, Any]) -> None:
        part = read_part(self._root, names_of(request), request["offset"], request["limit"])
        self._line.send(size=part.size)
        self._line.send_data(iter([part.data]))

    def _write(self, request: dict[str, Any]) -> None:
        data = b"".join(self._line.receive_data())
        self._line.send(created=write_whole(self._root, names_of(request), data, request["owner"]))

    def _links(self, request: dict[str, Any]) -> None:
        self._line.send(links={path: read_link(self._root, path) for path in request["paths"]})


def names_of(request: dict[str, Any]) -> tuple[bytes, ...]:
    """The components of the path that a request names."""
    return tuple(base64.b64decode(part) for part in request["parts"])


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def failure_fields(error: Exception) -> dict[str, Any]:
    """A failure as the server gets it: of our own kind, of the system, or unexpected with its trace."""
    told = explained(error)
    fields: dict[str, Any] = {"errno": error.errno, "reason": error.strerror} if isinstance(error, OSError) else {}
    if not isinstance(told, RookeryError):
        told = RookeryError(
            ErrorCode.INTERNAL,
            "The files could not be looked after: see the server's log.",
            detail="".join(traceback.format_exception(error))[-4_000:],
        )
    return {
        **fields,
        "code": told.code.value,
        "message": told.message,
        "detail": told.detail,
        "retryable": told.retryable,
    }


def main() -> None:
    """``engine WORKSPACE HOME``: serve until standard input ends."""
    root, home = (Path(argument) for argument in sys.argv[1:3])
    os.umask(0o022)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    try:
        Engine(Line(INPUT, OUTPUT), root, home).serve()
    except (GoneError, KeyboardInterrupt):
        # Whoever asked is gone, or got its answer and goes.
        return
