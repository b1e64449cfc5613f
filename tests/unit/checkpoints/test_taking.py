"""Snapshots: what they hold, what they notice, what they refuse."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from server.checkpoints import Kind, Limits, Skipped, SkipReason
from server.checkpoints import index as tree_index
from server.errors import ErrorCode, RookeryError
from tests.unit.checkpoints.workspaces import PATIENCE_S, Desk, describe, open_desk, shell


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


async def test_an_unchanged_tree_has_the_same_hash_and_nothing_changed(desk: Desk) -> None:
    shell(desk.tree, "mkdir -p a/b empty; echo one > a/b/file; ln -s nowhere link; mkdir .git; echo x > .git/HEAD")
    first = await desk.engine.take("s", desk.tree)
    second = await desk.engine.take("s", desk.tree)
    assert first.files == 3
    assert first.changed == 4, "two files, a link and an empty directory"
    assert (second.tree_hash, second.changed, second.files, second.bytes) == (
        first.tree_hash,
        0,
        first.files,
        first.bytes,
    )


async def test_equal_trees_have_equal_hashes_whoever_made_them(desk: Desk) -> None:
    shell(desk.tree, "echo one > file; touch -d @1000000000 file")
    other = desk.fork_place("other")
    shell(other, "echo one > file; touch -d @1000000000 file")
    first, second = await desk.engine.take("s", desk.tree), await desk.engine.take("other", other)
    assert first.tree_hash == second.tree_hash


async def test_a_change_with_a_forged_time_and_the_same_size_is_seen(desk: Desk) -> None:
    shell(desk.tree, "echo one > file; echo keep > other")
    first = await desk.engine.take("s", desk.tree)
    await desk.engine.take("s", desk.tree)
    shell(desk.tree, "touch -r file /tmp/$$; echo two > file; touch -r /tmp/$$ file; rm /tmp/$$")
    second = await desk.engine.take("s", desk.tree)
    assert second.changed == 1
    assert (await desk.engine.read(second.tree_hash, "file")).data == b"two\n"
    assert (await desk.engine.read(first.tree_hash, "file")).data == b"one\n"


async def test_changes_within_one_tick_of_the_clock_are_seen(desk: Desk) -> None:
    file = desk.tree / "file"
    for number in range(30):
        file.write_bytes(b"%04d" % number)
        snapshot = await desk.engine.take("s", desk.tree)
        assert (await desk.engine.read(snapshot.tree_hash, "file")).data == b"%04d" % number


async def test_an_entry_is_trusted_only_when_its_change_is_older_than_the_clocks_tick(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index must not trust a file that may have changed again within the tick of its recorded ``ctime``."""
    # The tick itself is a few milliseconds, which a busy machine may let pass between two lines.
    monkeypatch.setattr(tree_index, "RACY_NS", 10**12)
    (desk.tree / "file").write_bytes(b"one")
    await desk.engine.take("s", desk.tree)
    index = tree_index.load(desk.home / "index" / "s.index")
    assert index is not None
    assert index.root.rows[:8] == bytes(8), "a fresh file is kept with a ctime that never matches"
    monkeypatch.setattr(tree_index, "RACY_NS", -(10**12))
    await desk.engine.take("s", desk.tree)
    index = tree_index.load(desk.home / "index" / "s.index")
    assert index is not None
    assert index.root.rows[:8] != bytes(8)


async def test_a_mode_a_target_and_an_empty_directory_are_changes(desk: Desk) -> None:
    shell(desk.tree, "echo x > file; ln -s one link; mkdir sub")
    hashes = [(await desk.engine.take("s", desk.tree)).tree_hash]
    for script in ("chmod 600 file", "ln -sfn two link", "mkdir sub/empty", "chmod 700 sub", "rmdir sub/empty"):
        shell(desk.tree, script)
        snapshot = await desk.engine.take("s", desk.tree)
        assert snapshot.changed >= 1, script
        hashes.append(snapshot.tree_hash)
    assert len(set(hashes)) == len(hashes)


async def test_a_touched_file_is_no_change_but_its_time_is_kept(desk: Desk, tmp_path: Path) -> None:
    shell(desk.tree, "echo x > file")
    await desk.engine.take("s", desk.tree)
    shell(desk.tree, "touch -d @1234567890 file")
    snapshot = await desk.engine.take("s", desk.tree)
    assert snapshot.changed == 0
    fork = desk.fork_place()
    await desk.engine.materialise(snapshot.tree_hash, fork)
    assert (fork / "file").stat().st_mtime == 1234567890


async def test_content_is_stored_once_for_all_sessions(desk: Desk) -> None:
    shell(desk.tree, "head -c 100000 /dev/urandom > file; cp file copy; mkdir sub; cp file sub/again")
    await desk.engine.take("s", desk.tree)
    assert desk.object_count() == 3, "one content and two directories"
    fork = desk.fork_place()
    shell(fork, f"cp -a {desk.tree}/. .")
    await desk.another().take("fork", fork)
    assert desk.object_count() == 3


async def test_the_cost_follows_what_changed_in_a_tree_that_was_read_before(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell(desk.tree, "for d in $(seq 20); do mkdir d$d; for f in $(seq 20); do echo $d $f > d$d/f$f; done; done")
    monkeypatch.setattr(tree_index, "RACY_NS", 0)
    await desk.engine.take("s", desk.tree)
    shell(desk.tree, "echo changed > d7/f7")
    opened: list[object] = []
    original = os.open

    def counting(path: object, *args: object, **options: object) -> int:
        opened.append(path)
        return original(path, *args, **options)  # type: ignore[arg-type]

    before = desk.object_count()
    monkeypatch.setattr(os, "open", counting)
    snapshot = await desk.engine.take("s", desk.tree)
    monkeypatch.undo()
    assert snapshot.changed == 1
    assert [path for path in opened if str(path).startswith("f")] == ["f7"]
    assert desk.object_count() - before == 3, "the file, its directory and the root"


async def test_a_damaged_index_costs_a_full_reading_and_nothing_else(desk: Desk) -> None:
    shell(desk.tree, "mkdir a; echo one > a/file")
    first = await desk.engine.take("s", desk.tree)
    index = desk.home / "index" / "s.index"
    for damage in (b"", b"junk" * 100, index.read_bytes()[:-3], bytes(32) + index.read_bytes()[32:]):
        index.write_bytes(damage)
        assert (await desk.engine.take("s", desk.tree)).tree_hash == first.tree_hash


async def test_a_tree_can_be_taken_again_after_its_objects_were_lost(desk: Desk) -> None:
    """An index that builds on objects that are gone is not used: the new snapshot is whole."""
    shell(desk.tree, "mkdir a; echo one > a/file; echo two > b")
    first = await desk.engine.take("s", desk.tree)
    for path in (desk.home / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    second = await desk.another().take("s", desk.tree)
    assert second.tree_hash == first.tree_hash
    await desk.another().materialise(second.tree_hash, fork := desk.fork_place())
    assert describe(fork) == describe(desk.tree)


async def test_another_directory_at_the_same_place_is_read_afresh(desk: Desk) -> None:
    shell(desk.tree, "echo one > file")
    await desk.engine.take("s", desk.tree)
    desk.tree.rename(desk.tree.with_name("old"))
    desk.tree.mkdir()
    shell(desk.tree, "echo two > file")
    snapshot = await desk.engine.take("s", desk.tree)
    assert (await desk.engine.read(snapshot.tree_hash, "file")).data == b"two\n"


async def test_special_files_are_skipped_by_name_and_never_opened(desk: Desk) -> None:
    shell(desk.tree, "mkdir sub; mkfifo sub/fifo; echo x > file")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(desk.tree)
        listener.bind("socket")
        with anyio.fail_after(PATIENCE_S):
            snapshot = await desk.engine.take("s", desk.tree)
    assert snapshot.skipped == (Skipped("socket", SkipReason.SOCKET), Skipped("sub/fifo", SkipReason.FIFO))
    assert snapshot.files == 1
    listed = await desk.engine.listing(snapshot.tree_hash, "sub")
    assert [(item.path, item.kind, item.reason) for item in listed] == [("sub/fifo", Kind.SKIPPED, SkipReason.FIFO)]


async def test_a_file_over_its_bound_is_skipped_and_a_sparse_one_costs_what_it_holds(tmp_path: Path) -> None:
    with open_desk(tmp_path, Limits(max_file_bytes=8 << 20)) as desk:
        shell(desk.tree, "head -c 9000000 /dev/zero | tr '\\0' x > large; truncate -s 10T sparse; echo end >> sparse")
        with anyio.fail_after(PATIENCE_S):
            snapshot = await desk.engine.take("s", desk.tree)
        assert snapshot.skipped == (Skipped("large", SkipReason.TOO_LARGE, 9_000_000),)
        part = await desk.engine.read(snapshot.tree_hash, "sparse", offset=(10 << 40) - 2, limit=100)
        assert part.data == b"\0\0end\n"
        assert part.size == (10 << 40) + 4
        fork = desk.fork_place()
        await desk.engine.materialise(snapshot.tree_hash, fork)
        state = (fork / "sparse").stat()
        assert state.st_size == (10 << 40) + 4
        assert state.st_blocks * 512 < 32 << 20


async def test_a_large_file_is_stored_in_pieces_so_that_an_append_costs_one(desk: Desk) -> None:
    file = desk.tree / "log"
    file.write_bytes(os.urandom(13 << 20))
    first = await desk.engine.take("s", desk.tree)
    before = desk.object_count()
    with file.open("ab") as log:
        log.write(b"one more line\n")
    second = await desk.engine.take("s", desk.tree)
    assert desk.object_count() - before == 3, "the last piece, the list of pieces, the directory"
    for snapshot, content in ((first, file.read_bytes()[: 13 << 20]), (second, file.read_bytes())):
        read = await desk.engine.read(snapshot.tree_hash, "log", offset=(8 << 20) - 5, limit=20 << 20)
        assert read.data == content[(8 << 20) - 5 :]
        assert read.size == len(content)


@pytest.mark.parametrize(
    ("limits", "script"),
    [
        (Limits(max_entries=50), "touch $(seq 51)"),
        (Limits(max_entries=50), "for d in $(seq 10); do mkdir d$d; touch d$d/a d$d/b d$d/c d$d/d d$d/e; done"),
        (Limits(max_depth=5), "mkdir -p 1/2/3/4/5/6"),
        (Limits(max_new_bytes=1000), "head -c 600 /dev/urandom > a; head -c 600 /dev/urandom > b"),
    ],
)
async def test_a_tree_over_its_bounds_is_refused_with_a_remedy(tmp_path: Path, limits: Limits, script: str) -> None:
    with open_desk(tmp_path, limits) as desk:
        shell(desk.tree, script)
        with pytest.raises(RookeryError) as caught:
            await desk.engine.take("s", desk.tree)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
        assert "remove" in caught.value.message


async def test_a_tree_deeper_than_any_path_can_name_is_taken_written_and_removed(desk: Desk) -> None:
    depth = 1500
    fd = os.open(desk.tree, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper-and-deeper", dir_fd=fd)
        below = os.open("deeper-and-deeper", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=fd))
    os.close(fd)
    with anyio.fail_after(PATIENCE_S):
        snapshot = await desk.engine.take("s", desk.tree)
        assert snapshot.files == 1
        fork = desk.fork_place()
        assert await desk.engine.materialise(snapshot.tree_hash, fork) == depth + 1
        assert (await desk.engine.take("fork", fork)).tree_hash == snapshot.tree_hash
        empty = await desk.engine.take("empty", desk.fork_place("empty"))
        for tree in (desk.tree, fork):
            restored = await desk.engine.restore("s" if tree == desk.tree else "fork", tree, empty.tree_hash)
            assert restored.removed == depth + 1
            assert os.listdir(tree) == []


async def test_names_come_through_byte_for_byte(desk: Desk) -> None:
    names = [
        b"new\nline",
        b"\xff\xfe",
        b"-rf",
        b" ",
        b"\xc3\xa4",
        b"tab\t",
        b"a" * 255,
        b'"quoted"',
        b"\\",
        b"%s",
        b"*",
    ]
    for name in names:
        with open(os.path.join(os.fsencode(desk.tree), name), "wb") as file:
            file.write(name)
    snapshot = await desk.engine.take("s", desk.tree)
    fork = desk.fork_place()
    await desk.engine.materialise(snapshot.tree_hash, fork)
    assert describe(fork) == describe(desk.tree)
    items = await desk.engine.listing(snapshot.tree_hash)
    assert sorted(os.fsencode(item.path) for item in items) == sorted(names)
    for item in items:
        assert (await desk.engine.read(snapshot.tree_hash, item.path)).data == os.fsencode(item.path)


async def test_two_at_once_under_one_key_are_told_to_wait(desk: Desk) -> None:
    shell(desk.tree, "touch $(seq 200)")
    held = threading.Event()
    refused: list[ErrorCode] = []
    with desk.engine._keyed.locked("s"):
        held.set()
        with pytest.raises(RookeryError) as caught:
            await desk.another().take("s", desk.tree)
        refused.append(caught.value.code)
    assert refused == [ErrorCode.SESSION_BUSY]
    await desk.engine.take("s", desk.tree)


async def test_a_cancelled_snapshot_stops_and_lets_go(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    shell(desk.tree, "for f in $(seq 500); do echo $f > f$f; done")
    begun = anyio.Event()
    loop_token = anyio.lowlevel.current_token()
    go_on = threading.Event()
    read: list[object] = []
    original = os.lstat

    def slow(path: object, **options: object) -> os.stat_result:
        if not read:
            anyio.from_thread.run_sync(begun.set, token=loop_token)
            assert go_on.wait(PATIENCE_S)
        read.append(path)
        return original(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "lstat", slow)
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(desk.engine.take, "s", desk.tree)
            await begun.wait()
            group.cancel_scope.cancel()
            go_on.set()
    monkeypatch.undo()
    assert len(read) < 100, "the thread stopped soon after"
    assert (await desk.engine.take("s", desk.tree)).files == 500


async def test_an_unknown_key_or_a_lost_workspace_is_a_typed_error(desk: Desk) -> None:
    for key in ("", "../up", "a/b", ".hidden", "x" * 200, "new\nline"):
        with pytest.raises(RookeryError) as caught:
            await desk.engine.take(key, desk.tree)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    with pytest.raises(RookeryError) as lost:
        await desk.engine.take("s", desk.tree / "gone")
    assert lost.value.code is ErrorCode.SANDBOX_LOST


async def test_forgetting_a_key_leaves_nothing_of_it(desk: Desk) -> None:
    shell(desk.tree, "echo x > file")
    await desk.engine.take("s", desk.tree)
    await desk.engine.forget("s")
    await desk.engine.forget("s")
    assert list((desk.home / "index").iterdir()) == []


async def test_the_store_is_for_its_user_only(desk: Desk) -> None:
    shell(desk.tree, "echo secret > file; chmod 666 file")
    await desk.engine.take("s", desk.tree)
    for path in [desk.home / "objects", *(desk.home / "objects").rglob("*"), *(desk.home / "index").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0
    assert stat.S_IMODE((desk.home / "objects").stat().st_mode) == 0o700
    assert stat.S_IMODE((desk.home / "index").stat().st_mode) == 0o700
