"""What a sandbox sends is believed in nothing (rows F08 and F11): forged trees, streams and bombs against the host."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import pytest

from server.checkpoints import Checkpoints, Limits, ObjectStore
from server.checkpoints.exchange import (
    MAX_OBJECT,
    Piece,
    Unpacking,
    check,
    decode_pieces,
    encode_pieces,
    novelties,
    packed,
)
from server.checkpoints.manifest import DIRECTORY, FILE, LARGE_FILE, Entry, encode_chunks, encode_directory
from server.checkpoints.objects import digest_of
from server.checkpoints.trees import Trees
from server.checkpoints.work import Stop
from server.errors import ErrorCode, RookeryError
from tests.security.places import desk
from tests.unit.checkpoints.workspaces import Desk, describe, shell

__all__ = ["desk"]

MOST = 1_000


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


def file_entry(name: bytes, content: bytes) -> Entry:
    return Entry(FILE, name, 0o644, 0, len(content), 1, 0, digest_of(content))


def directory_entry(name: bytes, data: bytes, files: int = 1, size: int = 1) -> Entry:
    return Entry(DIRECTORY, name, 0, 0, size, files, 0, digest_of(data))


def count(store: ObjectStore) -> int:
    return sum(1 for _ in store.root.glob("[0-9a-f][0-9a-f]/*"))


@pytest.mark.parametrize(
    "stream",
    [
        zlib.compress(b"other"),
        zlib.compress(b"wanted and more"),
        zlib.compress(b"wan"),
        b"no stream",
        b"",
        zlib.compress(b"wanted") + b"x",
    ],
    ids=["another content", "more than asked for", "cut short", "no stream", "nothing", "goes on behind its end"],
)
def test_f11_a_content_is_kept_under_its_own_hash_or_not_at_all(store: ObjectStore, stream: bytes) -> None:
    """F11: what was asked for is what is taken; nothing else gets a name in the store."""
    wanted = Piece(digest_of(b"wanted"), 6)
    unpacking = Unpacking(store, [wanted])
    with pytest.raises(RookeryError) as refused:
        unpacking.feed(stream, Stop())
        unpacking.finish()
    assert refused.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert not any(path.read_bytes() != b"wanted" for path in store.root.glob("[0-9a-f][0-9a-f]/*"))


def test_f08_a_compressed_bomb_costs_no_more_than_what_was_asked_for(store: ObjectStore) -> None:
    """F08: 64 MiB of zeros in a quarter of a megabyte are refused after the first few of them."""
    compressor = zlib.compressobj(1)
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(64)) + compressor.flush()
    unpacking = Unpacking(store, [Piece(digest_of(b"x"), 1)])
    tracemalloc.start()
    try:
        with pytest.raises(RookeryError):
            unpacking.feed(bomb, Stop())
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert count(store) == 0


def test_f11_lists_of_unreasonable_objects_are_refused() -> None:
    for data in (b"x", encode_pieces([Piece(bytes(32), MAX_OBJECT + 1)])):
        with pytest.raises(RookeryError):
            decode_pieces(data)


def test_f11_a_tree_that_is_not_whole_does_not_count_as_there(store: ObjectStore) -> None:
    """F11: a missing file, a missing piece of a large one, a missing directory, a size that is not true."""
    trees, batch = Trees(store), store.batch()
    large = encode_chunks(5, [(0, digest_of(b"never sent"))])
    batch.put(large)
    batch.put(b"here")
    short = file_entry(b"a", b"here")._replace(size=3)
    for entry in (
        file_entry(b"a", b"never sent"),
        Entry(LARGE_FILE, b"a", 0o644, 0, 5, 1, 0, digest_of(large)),
        directory_entry(b"a", b"never sent"),
        short,
    ):
        root = encode_directory(0o755, [entry])
        with pytest.raises(RookeryError) as refused:
            check(trees, None, batch.put(root), MOST, Stop())
        assert refused.value.code is ErrorCode.STORAGE_UNAVAILABLE, entry


def test_f08_a_small_tree_that_unfolds_into_a_huge_one_is_refused(store: ObjectStore) -> None:
    """F08: sixty directories, each twice the one below, would be a million million files."""
    trees, batch = Trees(store), store.batch()
    data = encode_directory(0o755, [])
    batch.put(data)
    for _ in range(60):
        data = encode_directory(0o755, [directory_entry(name, data, 0, 0) for name in (b"a", b"b")])
        batch.put(data)
    with pytest.raises(RookeryError) as refused:
        check(trees, None, digest_of(data), MOST, Stop())
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


def test_f11_a_directory_that_belittles_what_is_in_it_is_refused(store: ObjectStore) -> None:
    """F11: sums that are shown to users and bound the work must be true."""
    trees, batch = Trees(store), store.batch()
    batch.put(b"content")
    inner = encode_directory(0o755, [file_entry(b"a", b"content")])
    batch.put(inner)
    root = encode_directory(0o755, [directory_entry(b"sub", inner, files=0, size=0)])
    with pytest.raises(RookeryError, match="storage_unavailable"):
        check(trees, None, batch.put(root), MOST, Stop())


async def test_f08_an_offer_over_the_bounds_of_a_checkpoint_is_refused_before_a_byte_of_it_came(tmp_path: Path) -> None:
    """F08: a sandbox can offer more than this host wants to keep."""
    engine = Checkpoints(ObjectStore(tmp_path / "objects"), tmp_path / "index", Limits(max_new_bytes=1_000))
    await engine.mirror.answer(encode_pieces([Piece(bytes(32), 1_000)]))
    with pytest.raises(RookeryError) as refused:
        await engine.mirror.answer(encode_pieces([Piece(bytes([number] * 32), 600) for number in range(2)]))
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


async def test_f11_a_file_with_the_bytes_of_a_directory_does_not_stand_for_it(desk: Desk, store: ObjectStore) -> None:
    """F11: an agent can write a file that is, byte for byte, the stored form of a directory of its tree."""
    shell(desk.tree, "mkdir zzz; echo precious > zzz/file; touch -d @1000000000 zzz/file")
    alone = await desk.engine.take("s", desk.tree)
    theirs = Trees(desk.objects)
    [directory] = theirs.read(bytes.fromhex(alone.tree_hash)).entries
    (desk.tree / "aaa").write_bytes(desk.objects.read(directory.payload))
    snapshot = await desk.engine.take("s", desk.tree)
    root = bytes.fromhex(snapshot.tree_hash)
    pieces = novelties(theirs, None, root, Stop())
    unpacking = Unpacking(store, pieces)
    for part in packed(desk.objects, pieces, Stop()):
        unpacking.feed(part, Stop())
    unpacking.finish()
    check(Trees(store), None, root, MOST, Stop())
    assert digest_of(b"precious\n") in {piece.digest for piece in pieces}
    assert describe(desk.tree)[b"zzz/file"][2] == b"precious\n"
