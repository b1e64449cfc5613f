"""Files of a workspace that lies in a sandbox elsewhere: looked after by an engine there, kept here.

Every tree that is taken is mirrored into this server's object store before anyone gets to know of it. So comparing,
reading and exporting checkpoints needs no sandbox, and neither does a fork of a sandbox that was lost.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final, TypeVar

import structlog

from policies.types import LinkLookup
from server.checkpoints import Checkpoints, PendingRestore, Restored, Seal, Skipped, SkipReason, Snapshot
from server.checkpoints.exchange import MAX_PIECES
from server.checkpoints.work import explained
from server.errors import ErrorCode, RookeryError
from server.files.dialogue import Dialogue
from server.files.engines import RemoteEngine
from server.files.judging import judged
from server.files.looking import Listing, Part, Seen
from server.sandboxes.shipping import RootSandbox

log = structlog.get_logger(__name__)

T = TypeVar("T")

_TREE: Final = re.compile(r"[0-9a-f]{64}")
_PIECE_BYTES: Final = 40


class RemoteFiles:
    """Implements :class:`server.files.base.WorkspaceFiles`.

    Args:
        checkpoints: this server's engine, which holds the mirror.
        key: the session's id.
        sandbox: where they lie.
        engine: the sandbox's engine.
        owner: uid and gid inside the sandbox that what is written gets.
    """

    def __init__(
        self, checkpoints: Checkpoints, key: str, sandbox: RootSandbox, engine: RemoteEngine, owner: int | None
    ) -> None:
        self._mirror = checkpoints.mirror
        self._key = key
        self._sandbox = sandbox
        self._engine = engine
        self._owner = owner

    async def take(self) -> Snapshot:
        with _explained():
            async with self._engine.working() as dialogue:
                base = await self._mirror.latest(self._key)
                await dialogue.send(do="take", base=base, **self._named)
                snapshot = await self._receive(dialogue, base)
        if self._engine.is_full():
            await self._thin_out()
        return snapshot

    async def _thin_out(self) -> None:
        """Remove inside what only older trees need: it all lies here, and comes back when it is asked for."""
        with _explained():
            async with self._engine.working() as dialogue:
                await dialogue.send(do="collect", grace_s=0)
                freed = _number(await dialogue.receive(), "freed")
        log.debug("store inside a sandbox was thinned out", session_id=self._key, freed=freed)

    async def seal(self, known_as: str | None = None) -> None:
        if await self._mirror.sealed(self._key) is not None:
            return
        # First what is certain in any case: the sandbox may not answer, or this process die meanwhile.
        await self._mirror.mistrust(self._key)
        snapshot = await self.take()
        seal = Seal(snapshot.tree_hash, secrets.token_hex(16))
        with _explained():
            async with self._engine.working() as dialogue:
                await dialogue.send(do="seal", token=seal.token)
                await dialogue.receive()
        await self._mirror.seal(self._key, seal)
        await self._thin_out()

    async def intact(self) -> bool:
        seal = await self._mirror.sealed(self._key)
        if seal is None:
            return True
        with _explained():
            async with self._engine.working() as dialogue:
                await dialogue.send(do="look", **self._named)
                found = await dialogue.receive()
        if _tree(found.get("tree")) != seal.tree_hash or seal.token not in (None, found.get("token")):
            return False
        await self._mirror.unseal(self._key)
        return True

    async def restore(
        self,
        tree_hash: str,
        *,
        known_as: str | None = None,
        on_present: Callable[[Snapshot], Awaitable[None]] | None = None,
    ) -> Restored:
        await self._mirror.known(tree_hash)
        with _explained():
            async with self._engine.working() as dialogue:
                base = await self._mirror.latest(self._key)
                await dialogue.send(do="restore", base=base, known_as=known_as, owner=self._owner, **self._named)
                before = await self._receive(dialogue, base)
                if on_present is not None:
                    await on_present(before)
                await self._give(dialogue, before.tree_hash, tree_hash)
                done = await dialogue.receive()
        restored = Restored(
            tree_hash=tree_hash,
            exact=done.get("exact") is True,
            before=before,
            written=_number(done, "written"),
            removed=_number(done, "removed"),
            kept=_skipped(done, "kept"),
            missing=_skipped(done, "missing"),
            separated=_number(done, "separated"),
        )
        if restored.exact:
            await self._mirror.remember(self._key, tree_hash)
        else:
            await self.take()
        return restored

    async def pending(self) -> PendingRestore | None:
        with _explained():
            async with self._engine.working() as dialogue:
                await dialogue.send(do="pending", **self._named)
                found = (await dialogue.receive()).get("pending")
        if not isinstance(found, list) or len(found) != 2:
            return None
        return PendingRestore(_tree(found[0]), _tree(found[1]))

    async def materialise(self, tree_hash: str) -> int:
        await self._mirror.known(tree_hash)
        with _explained():
            async with self._engine.working() as dialogue:
                await dialogue.send(do="materialise", owner=self._owner, **self._named)
                await dialogue.receive()
                await self._give(dialogue, None, tree_hash)
                written = _number(await dialogue.receive(), "written")
        await self._mirror.remember(self._key, tree_hash)
        return written

    async def listing(self, parts: tuple[bytes, ...], depth: int, limit: int) -> Listing:
        async with self._engine.looking() as dialogue:
            await dialogue.send(do="list", parts=_encoded(parts), depth=depth, limit=limit)
            answer = await dialogue.receive()
        try:
            entries = tuple(
                Seen(_decoded(path), str(kind), int(size), int(mode), float(mtime), target and _decoded(target))
                for path, kind, size, mode, mtime, target in answer["entries"][:limit]
            )
            return Listing(entries, bool(answer["truncated"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _nonsense(error) from error

    async def read(self, parts: tuple[bytes, ...], offset: int, limit: int) -> Part:
        async with self._engine.looking() as dialogue:
            await dialogue.send(do="read", parts=_encoded(parts), offset=offset, limit=limit)
            size = _number(await dialogue.receive(), "size")
            return Part(size, await dialogue.receive_all(limit))

    async def write(self, parts: tuple[bytes, ...], data: bytes) -> bool:
        async with self._engine.looking() as dialogue:
            await dialogue.send(do="write", parts=_encoded(parts), owner=self._owner)
            await dialogue.send_data(iter([data]))
            created = (await dialogue.receive()).get("created") is True
        # Whoever is told that it was written may count on it, whatever becomes of the sandbox.
        await self.take()
        return created

    async def judged(self, judge: Callable[[LinkLookup], T]) -> T:
        return await judged(judge, self._links)

    async def _links(self, paths: Sequence[str]) -> dict[str, str | None]:
        async with self._engine.looking() as dialogue:
            await dialogue.send(do="links", paths=list(paths))
            answer = (await dialogue.receive()).get("links")
        if not isinstance(answer, dict):
            raise _nonsense(None)
        found = {path: answer.get(path) for path in paths}
        return {path: text if isinstance(text, str) else None for path, text in found.items()}

    @property
    def _named(self) -> dict[str, Any]:
        return {"key": self._key, "limits": asdict(self._mirror.limits)}

    async def _receive(self, dialogue: Dialogue, base: str | None) -> Snapshot:
        """Take over the tree that the engine answers with, as far as it is not here yet."""
        answer = await dialogue.receive()
        tree, changed = _tree(answer.get("tree")), _number(answer, "changed")
        if tree != base:
            receiving, wanted = await self._mirror.answer(await dialogue.receive_all(MAX_PIECES * _PIECE_BYTES))
            await dialogue.send_data(iter([wanted]))
            async for part in dialogue.receive_data():
                await receiving.feed(part)
            await receiving.finish()
        return await self._mirror.accept(self._key, base, tree, changed)

    async def _give(self, dialogue: Dialogue, base: str | None, tree: str) -> None:
        """Hand over what the sandbox lacks of a tree."""
        pieces, offer = await self._mirror.offer(base, tree)
        await dialogue.send(tree=tree)
        await dialogue.send_data(iter([offer]))
        wanted = await dialogue.receive_all(len(pieces))
        if len(wanted) != len(pieces):
            raise _nonsense(None)
        chosen = [piece for piece, flag in zip(pieces, wanted, strict=True) if flag]
        await dialogue.send_data(self._mirror.contents(chosen))


@contextmanager
def _explained() -> Iterator[None]:
    """A failure of the system inside the sandbox, as the caller of the engine would get it here."""
    try:
        yield
    except OSError as error:
        raise explained(error) from error


def _tree(value: object) -> str:
    if not isinstance(value, str) or not _TREE.fullmatch(value):
        raise _nonsense(None)
    return value


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or value < 0:
        raise _nonsense(None)
    return value


def _skipped(fields: dict[str, Any], name: str) -> tuple[Skipped, ...]:
    try:
        return tuple(Skipped(str(path), SkipReason(reason), int(size)) for path, reason, size in fields[name])
    except (KeyError, TypeError, ValueError) as error:
        raise _nonsense(error) from error


def _encoded(parts: Iterable[bytes]) -> list[str]:
    return [base64.b64encode(part).decode("ascii") for part in parts]


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _nonsense(error: Exception | None) -> RookeryError:
    return RookeryError(
        ErrorCode.SANDBOX_LOST,
        "The sandbox answered what makes no sense: fork one of the session's checkpoints.",
        detail=f"answer of the files engine: {error!r}",
    )
