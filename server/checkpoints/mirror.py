"""The server's copies of trees that are taken in a sandbox: nothing is lost when the sandbox loses its disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from server.checkpoints.exchange import (
    Piece,
    Unpacking,
    check,
    decode_pieces,
    encode_pieces,
    lacking,
    novelties,
    packed,
    sums,
)
from server.checkpoints.keyed import KeyedTrees
from server.checkpoints.records import Limits, Seal, Snapshot
from server.checkpoints.work import Stop
from server.errors import ErrorCode, RookeryError

T = TypeVar("T")


class Runner(Protocol):
    """Runs blocking work, as :func:`server.checkpoints.blocking.run_blocking` does."""

    async def __call__(self, function: Callable[[Stop], T], /) -> T: ...


class Mirror:
    """Sends and receives trees. What is received counts as there only after :meth:`accept`.

    All methods may raise ``storage_unavailable``.
    """

    def __init__(self, keyed: KeyedTrees, limits: Limits, run: Runner) -> None:
        self._keyed = keyed
        self._trees = keyed.trees
        self._run = run
        self.limits = limits
        """Bounds of one tree, wherever it is taken."""

    async def latest(self, key: str) -> str | None:
        """The tree last accepted under a key: the base of the next exchange."""
        found = await self._run(lambda _stop: self._keyed.latest(key))
        return None if found is None else found.hex()

    async def known(self, tree: str) -> None:
        """See that a tree is here.

        Raises:
            RookeryError: ``checkpoint_not_found``.
        """
        await self._run(lambda _stop: self._trees.root(tree))

    async def answer(self, offered: bytes) -> tuple[Receiving, bytes]:
        """Take an offer: what will receive the contents, and the answer that asks for them.

        Raises:
            RookeryError: ``invalid_argument``: it is over the bounds of a checkpoint.
        """

        def work(stop: Stop) -> tuple[list[Piece], bytes]:
            pieces = decode_pieces(offered)
            if sum(piece.size for piece in pieces) > self.limits.max_new_bytes:
                raise RookeryError(
                    ErrorCode.INVALID_ARGUMENT,
                    "The workspace holds more new data than a checkpoint takes: remove large files, then try again.",
                )
            lacks = lacking(self._trees.objects, pieces, stop)
            return [piece for piece, lack in zip(pieces, lacks, strict=True) if lack], bytes(lacks)

        wanted, answer = await self._run(work)
        return Receiving(Unpacking(self._trees.objects, wanted), self._run), answer

    async def accept(self, key: str, base: str | None, tree: str, changed: int) -> Snapshot:
        """Count a received tree as there, and keep it from being collected until its checkpoint is recorded.

        Raises:
            RookeryError: ``storage_unavailable``: it is not whole, or its directories say untrue things.
        """
        root, known = bytes.fromhex(tree), None if base is None else bytes.fromhex(base)

        def work(stop: Stop) -> None:
            with self._trees.objects.shared(stop):
                check(self._trees, known, root, self.limits.max_entries, stop)
                self._keyed.saw(key, root)

        await self._run(work)
        return replace(await self.snapshot(tree), changed=changed)

    async def remember(self, key: str, tree: str) -> None:
        """The workspace of a key is a tree now that is here already."""
        await self._run(lambda _stop: self._keyed.saw(key, self._trees.root(tree)))

    async def seal(self, key: str, seal: Seal) -> None:
        """Write down what the workspace of a key is while it is left alone."""
        await self._run(lambda _stop: self._keyed.seal(key, seal))

    async def mistrust(self, key: str) -> None:
        """Write down that the workspace of a key is to be compared with what is known of it, unless it is sealed."""

        def work(_stop: Stop) -> None:
            known = self._keyed.latest(key)
            if known is not None and self._keyed.sealed(key) is None:
                self._keyed.seal(key, Seal(known.hex(), None))

        await self._run(work)

    async def sealed(self, key: str) -> Seal | None:
        """What the workspace of a key was when it was left alone; None while somebody works with it."""
        return await self._run(lambda _stop: self._keyed.sealed(key))

    async def unseal(self, key: str) -> None:
        """Somebody works with the workspace from now on."""
        await self._run(lambda _stop: self._keyed.unseal(key))

    async def snapshot(self, tree: str) -> Snapshot:
        """A tree that is here, as if it had just been taken.

        Raises:
            RookeryError: ``checkpoint_not_found``.
        """

        def work(stop: Stop) -> Snapshot:
            root = self._trees.root(tree)
            files, size, skipped = sums(self._trees.read(root))
            return Snapshot(tree, files, size, self._trees.skipped(root, stop) if skipped else (), 0)

        return await self._run(work)

    async def offer(self, base: str | None, tree: str) -> tuple[list[Piece], bytes]:
        """What a tree has beyond a base, and the same as an offer."""

        def work(stop: Stop) -> list[Piece]:
            known = None if base is None else bytes.fromhex(base)
            return novelties(self._trees, known, self._trees.root(tree), stop)

        pieces = await self._run(work)
        return pieces, encode_pieces(pieces)

    async def contents(self, pieces: Sequence[Piece]) -> AsyncIterator[bytes]:
        """The contents of objects as one compressed stream."""
        stream = packed(self._trees.objects, pieces, Stop())
        while (part := await self._run(lambda _stop: next(stream, None))) is not None:
            yield part


class Receiving:
    """Takes the contents that were asked for."""

    def __init__(self, unpacking: Unpacking, run: Runner) -> None:
        self._unpacking = unpacking
        self._run = run

    async def feed(self, data: bytes) -> None:
        await self._run(lambda stop: self._unpacking.feed(data, stop))

    async def finish(self) -> None:
        await self._run(lambda _stop: self._unpacking.finish())
