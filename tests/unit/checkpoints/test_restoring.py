"""Restores and forks: exact, complete, and nothing outside."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.checkpoints import Limits, Snapshot
from server.errors import ErrorCode, RookeryError
from tests.unit.checkpoints.workspaces import Desk, describe, open_desk, quote, shell


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


NAMES = [b"a", b"b", b"sub", b"sub/c", b"sub/deep/d", b"-rf", b"new\nline", b"\xff\xfe", b"sp ace", b".git/config"]
names = st.sampled_from(NAMES).map(quote)
words = st.integers(0, 99).map(lambda number: b"w%02d" % number)
modes = st.sampled_from([b"644", b"600", b"755", b"444", b"000", b"1755", b"4755"])
directory_modes = st.sampled_from([b"755", b"700", b"2775", b"1777", b"555"])


def command(form: bytes, *parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(lambda values: form % values)


commands = st.one_of(
    command(b"mkdir -p -- $(dirname -- ./%s); printf %s > ./%s", names, words, st.just(b"a")),
    command(b'f=%s; mkdir -p -- "$(dirname -- "$f")"; printf %s > ./"$f"', names, words),
    command(b'f=%s; printf %s >> ./"$f"', names, words),
    command(b'f=%s; touch -r ./"$f" ../stamp; printf %s > ./"$f"; touch -r ../stamp ./"$f"', names, words),
    command(b'f=%s; mkdir -p ./"$f"', names),
    command(b"rm -rf -- ./%s", names),
    command(b"mv -T -- ./%s ./%s", names, names),
    command(b"cp -aT -- ./%s ./%s", names, names),
    command(b"ln -sfn -- %s ./%s", names, names),
    command(b"ln -f -- ./%s ./%s", names, names),
    command(b"ln -sfn ../outside ./%s", names),
    command(b'f=%s; [ -d ./"$f" ] || chmod %s ./"$f"', names, modes),
    command(b'f=%s; [ -d ./"$f" ] && chmod %s ./"$f"', names, directory_modes),
    command(b"touch -d @%s ./%s", st.integers(0, 2**31).map(lambda at: b"%d" % at), names),
    command(b"mkfifo ./%s", st.sampled_from([b"pipe", b"sub/pipe"])),
    command(b"head -c 5000000 /dev/zero | tr '\\0' %s > ./%s", st.sampled_from([b"x", b"y"]), names),
    command(b"truncate -s %s ./%s", st.sampled_from([b"0", b"3", b"9M"]), names),
    command(b"chmod %s .", directory_modes),
)
scripts = st.lists(commands, max_size=12).map(b"\n".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=scripts, second=scripts, third=scripts)
async def test_any_tree_comes_back_to_the_last_bit_after_any_edits(
    first: bytes, second: bytes, third: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_desk(tmp_path_factory.mktemp("property")) as desk:
        engine, tree = desk.engine, desk.tree
        seen: list[tuple[Snapshot, object]] = []
        for script in (first, second, third):
            shell(tree, b"mkdir -p ../outside; touch ../stamp\n" + script)
            seen.append((await engine.take("s", tree), describe(tree)))
        for snapshot, wanted in (seen[0], seen[2], seen[1]):
            restored = await engine.restore("s", tree, snapshot.tree_hash)
            assert describe(tree) == wanted
            assert restored.exact is not bool(restored.missing or restored.kept)
            again = await desk.another().take("s", tree)
            if restored.exact:
                assert (again.tree_hash, again.changed) == (snapshot.tree_hash, 0)
            fork = desk.fork_place(f"fork-{snapshot.tree_hash[:8]}-{len(os.listdir(desk.home.parent))}")
            await engine.materialise(snapshot.tree_hash, fork, key="fork")
            assert describe(fork) == wanted
            assert not [name for name in os.listdir(desk.home.parent) if name.startswith(".rookery")]


async def test_a_rewind_can_itself_be_undone(desk: Desk) -> None:
    shell(desk.tree, "echo one > file; mkdir dir; echo two > dir/file")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "rm -r dir; echo changed > file; ln -s file dir; echo new > new")
    wanted = describe(desk.tree)
    restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
    assert (restored.before.changed, restored.exact) == (4, True)
    assert (desk.tree / "dir" / "file").read_text() == "two\n"
    await desk.engine.restore("s", desk.tree, restored.before.tree_hash)
    assert describe(desk.tree) == wanted


async def test_the_present_is_handed_over_before_anything_changes(desk: Desk) -> None:
    shell(desk.tree, "echo one > file")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "echo two > file")
    seen: list[str] = []

    async def record(present: Snapshot) -> None:
        assert (desk.tree / "file").read_text() == "two\n"
        seen.append(present.tree_hash)

    restored = await desk.engine.restore("s", desk.tree, first.tree_hash, on_present=record)
    assert seen == [restored.before.tree_hash]

    async def refuse(present: Snapshot) -> None:
        raise RookeryError(ErrorCode.STORAGE_UNAVAILABLE, "no")

    with pytest.raises(RookeryError):
        await desk.engine.restore("s", desk.tree, restored.before.tree_hash, on_present=refuse)
    assert (desk.tree / "file").read_text() == "one\n"
    assert await desk.engine.pending("s") is None


async def test_only_what_differs_is_written(desk: Desk) -> None:
    shell(desk.tree, "for d in 1 2 3; do mkdir d$d; for f in 1 2 3; do echo $d$f > d$d/f$f; done; done")
    first = await desk.engine.take("s", desk.tree)
    inodes = {path: path.stat().st_ino for path in desk.tree.rglob("f*")}
    shell(desk.tree, "echo changed > d2/f2; rm d3/f1; touch d1/extra")
    restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
    assert (restored.written, restored.removed) == (2, 1)
    moved = [str(path.relative_to(desk.tree)) for path, inode in inodes.items() if path.stat().st_ino != inode]
    assert set(moved) <= {"d2/f2", "d3/f1"}


async def test_a_present_state_that_is_vouched_for_is_not_read_again(desk: Desk) -> None:
    shell(desk.tree, "mkdir a b; echo one > a/file; echo one > b/file")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "echo two > a/file; rm -r b")
    present = await desk.engine.take("s", desk.tree)
    restored = await desk.engine.restore("s", desk.tree, first.tree_hash, known_as=present.tree_hash)
    assert (restored.before.tree_hash, restored.exact) == (present.tree_hash, True)
    back = await desk.engine.restore("s", desk.tree, present.tree_hash, known_as=first.tree_hash)
    assert (back.written, back.removed, back.exact) == (1, 2, True)
    shell(desk.tree, "echo three > a/file")
    wrong = await desk.engine.restore("s", desk.tree, first.tree_hash, known_as=first.tree_hash)
    assert wrong.before.tree_hash != first.tree_hash, "a state that was not the last one seen is no excuse"
    assert (desk.tree / "a" / "file").read_text() == "one\n"


async def test_an_unknown_checkpoint_is_not_found_and_changes_nothing(desk: Desk) -> None:
    shell(desk.tree, "echo one > file")
    await desk.engine.take("s", desk.tree)
    wanted = describe(desk.tree)
    for unknown in ("00" * 32, "", "zz", "../../etc"):
        with pytest.raises(RookeryError) as caught:
            await desk.engine.restore("s", desk.tree, unknown)
        assert caught.value.code is ErrorCode.CHECKPOINT_NOT_FOUND
        with pytest.raises(RookeryError) as caught:
            await desk.engine.materialise(unknown, desk.tree)
        assert caught.value.code is ErrorCode.CHECKPOINT_NOT_FOUND
    assert describe(desk.tree) == wanted


async def test_damaged_content_is_refused_before_anything_changes(desk: Desk) -> None:
    shell(desk.tree, "head -c 100000 /dev/urandom > file; echo other > other")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "echo changed > file; rm other")
    wanted = describe(desk.tree)
    largest = max((desk.home / "objects").glob("[0-9a-f][0-9a-f]/*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, 5000)
    with pytest.raises(RookeryError) as caught:
        await desk.engine.restore("s", desk.tree, first.tree_hash)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.STORAGE_UNAVAILABLE, False)
    assert describe(desk.tree) == wanted
    assert await desk.engine.pending("s") is None


async def test_a_fork_shares_no_file_with_its_origin_or_the_store(desk: Desk) -> None:
    shell(desk.tree, "echo one > file; ln file linked; chmod 400 file")
    snapshot = await desk.engine.take("s", desk.tree)
    fork = desk.fork_place()
    await desk.engine.materialise(snapshot.tree_hash, fork)
    kept = {path.stat().st_ino for path in (desk.home / "objects").rglob("*")}
    kept |= {path.stat().st_ino for path in desk.tree.iterdir()}
    assert not kept & {path.stat().st_ino for path in fork.iterdir()}
    assert all(path.stat().st_nlink == 1 for path in fork.iterdir())
    shell(fork, "chmod 600 file; echo changed > file")
    assert (desk.tree / "file").read_text() == "one\n"
    assert (await desk.engine.read(snapshot.tree_hash, "file")).data == b"one\n"


async def test_the_first_snapshot_of_a_fork_reads_no_content_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.checkpoints.index.RACY_NS", -(10**12))
    shell(desk.tree, "mkdir a; for f in $(seq 20); do echo $f > a/f$f; done")
    snapshot = await desk.engine.take("s", desk.tree)
    fork = desk.fork_place()
    await desk.engine.materialise(snapshot.tree_hash, fork, key="fork")
    monkeypatch.setattr("server.checkpoints.scan.store_file", lambda *_: pytest.fail("a file was read"))
    taken = await desk.engine.take("fork", fork)
    assert (taken.tree_hash, taken.changed) == (snapshot.tree_hash, 0)


async def test_a_fork_needs_an_empty_directory_and_leaves_one_when_it_fails(desk: Desk) -> None:
    shell(desk.tree, "mkdir sub; head -c 100000 /dev/urandom > sub/file; echo x > a; mkdir empty")
    snapshot = await desk.engine.take("s", desk.tree)
    with pytest.raises(RookeryError) as caught:
        await desk.engine.materialise(snapshot.tree_hash, desk.tree)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    largest = max((desk.home / "objects").glob("[0-9a-f][0-9a-f]/*"), key=lambda path: path.stat().st_size)
    largest.unlink()
    fork = desk.fork_place()
    with pytest.raises(RookeryError) as caught:
        await desk.engine.materialise(snapshot.tree_hash, fork)
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert os.listdir(fork) == []


async def test_what_no_checkpoint_can_hold_is_not_destroyed(tmp_path: Path) -> None:
    with open_desk(tmp_path, Limits(max_file_bytes=1000)) as desk:
        shell(desk.tree, "echo one > file; mkdir -p gone")
        first = await desk.engine.take("s", desk.tree)
        shell(desk.tree, "mkdir -p new/sub; echo x > new/small; head -c 2000 /dev/zero > new/sub/large; rm -r gone")
        shell(desk.tree, "head -c 3000 /dev/zero > file; head -c 4000 /dev/zero > gone")
        restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
        assert [skipped.path for skipped in restored.kept] == ["file", "gone", "new/sub/large"]
        assert not restored.exact
        assert (desk.tree / "new" / "sub" / "large").stat().st_size == 2000
        assert not (desk.tree / "new" / "small").exists()
        back = await desk.engine.restore("s", desk.tree, restored.before.tree_hash)
        assert back.exact, "what is skipped on both sides is left alone"
        assert (desk.tree / "gone").stat().st_size == 4000
        assert (desk.tree / "new" / "small").read_text() == "x\n"


async def test_a_forecast_tells_what_the_restore_then_keeps_and_misses(tmp_path: Path) -> None:
    with open_desk(tmp_path, Limits(max_file_bytes=1000)) as desk:
        shell(desk.tree, "mkdir -p old/deep both; echo x > old/deep/file; mkfifo old/deep/pipe both/pipe gone")
        shell(desk.tree, "head -c 2000 /dev/zero > both/large; echo x > changed")
        first = await desk.engine.take("s", desk.tree)
        shell(desk.tree, "rm -r old gone changed; mkdir -p new/sub changed; mkfifo new/sub/pipe; echo x > new/small")
        shell(desk.tree, "head -c 3000 /dev/zero | tee new/sub/large changed/large > /dev/null")
        present = await desk.engine.take("s", desk.tree)
        ahead = await desk.engine.forecast(present.tree_hash, first.tree_hash)
        restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
        assert (ahead.kept, ahead.missing) == (restored.kept, restored.missing)
        assert [one.path for one in ahead.kept] == ["changed/large", "new/sub/large"]
        assert [one.path for one in ahead.missing] == ["gone", "old/deep/pipe"]

        between = await desk.engine.take("s", desk.tree)
        ahead = await desk.engine.forecast(between.tree_hash, present.tree_hash)
        restored = await desk.engine.restore("s", desk.tree, present.tree_hash)
        assert (ahead.kept, ahead.missing) == (restored.kept, restored.missing)


async def test_what_trees_do_not_hold_is_told_for_the_paths_that_are_asked_for(desk: Desk) -> None:
    shell(desk.tree, "mkdir sub; mkfifo pipe sub/pipe")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "rm pipe; mkfifo sub/other")
    second = await desk.engine.take("s", desk.tree)
    both = await desk.engine.skipped(first.tree_hash, second.tree_hash)
    assert [one.shown for one in both] == ["pipe (fifo)", "sub/other (fifo)", "sub/pipe (fifo)"]
    assert [one.path for one in await desk.engine.skipped(None, second.tree_hash)] == ["sub/other", "sub/pipe"]
    below = await desk.engine.skipped(first.tree_hash, second.tree_hash, paths=["sub/pipe", "nothing"])
    assert [one.path for one in below] == ["sub/pipe"]


async def test_a_kept_file_keeps_its_directory_when_a_file_should_be_there(tmp_path: Path) -> None:
    with open_desk(tmp_path, Limits(max_file_bytes=1000)) as desk:
        shell(desk.tree, "echo one > place")
        first = await desk.engine.take("s", desk.tree)
        shell(desk.tree, "rm place; mkdir place; echo x > place/small; head -c 2000 /dev/zero > place/large")
        restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
        assert [skipped.path for skipped in restored.kept] == ["place/large"]
        assert os.listdir(desk.tree / "place") == ["large"]


async def test_set_user_id_is_never_written_by_the_host(desk: Desk) -> None:
    shell(desk.tree, "cp /bin/true program; chmod 6755 program; mkdir shared; chmod 2775 shared")
    snapshot = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "rm -r program shared")
    await desk.engine.restore("s", desk.tree, snapshot.tree_hash)
    assert stat.S_IMODE((desk.tree / "program").stat().st_mode) == 0o755
    assert stat.S_IMODE((desk.tree / "shared").stat().st_mode) == 0o2775


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_everything_restored_belongs_to_the_sandbox(desk: Desk) -> None:
    shell(desk.tree, "mkdir -p a/b; echo x > a/b/file; ln -s file a/b/link")
    snapshot = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "rm -r a")
    await desk.engine.restore("s", desk.tree, snapshot.tree_hash, owner=12345)
    fork = desk.fork_place()
    await desk.engine.materialise(snapshot.tree_hash, fork, owner=12345)
    for path in (*desk.tree.rglob("*"), *fork.rglob("*"), fork):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (12345, 12345), path


LOCKED = """
import os, sys, anyio
from pathlib import Path
from tests.unit.checkpoints.workspaces import describe, open_desk, shell
async def main():
    with open_desk(Path(sys.argv[1])) as desk:
        shell(desk.tree, "mkdir -p shut/in open; echo one > shut/in/file; echo x > closed")
        shell(desk.tree, "chmod 000 closed shut/in/file; chmod 500 shut/in; chmod 000 shut")
        first = await desk.engine.take("s", desk.tree)
        assert (first.files, first.skipped) == (2, ()), first
        assert (desk.tree / "shut").stat().st_mode & 0o777 == 0, "what was lent was taken back"
        shell(desk.tree, "chmod 700 shut; chmod 700 shut/in; rm -rf shut; chmod 600 closed; echo y > closed")
        restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
        assert restored.exact, restored
        assert (desk.tree / "shut").stat().st_mode & 0o777 == 0
        again = await desk.another().take("s", desk.tree)
        assert again.tree_hash == first.tree_hash
        empty = await desk.engine.take("empty", desk.fork_place("empty"))
        await desk.engine.restore("s", desk.tree, empty.tree_hash)
        assert os.listdir(desk.tree) == []
anyio.run(main)
"""


def test_locked_files_and_directories_are_read_and_restored_by_a_server_that_is_not_root() -> None:
    nobody = 65534
    child = os.fork()
    if child == 0:
        # A child process of the test that gives up root, with all modules loaded while it still could read them.
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(nobody)
                os.setuid(nobody)
            with tempfile.TemporaryDirectory() as place:
                sys.argv = ["-", place]
                exec(compile(LOCKED, "locked", "exec"), {})
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """In a process of its own, so that nothing else opens or closes descriptors meanwhile."""
    script = f"""
import os, anyio
from pathlib import Path
from tests.unit.checkpoints.workspaces import open_desk, shell
async def main():
    with open_desk(Path({str(tmp_path)!r})) as desk:
        shell(desk.tree, "mkdir -p a/b; echo x > a/b/c; mkfifo p")
        counts = []
        for _ in range(3):
            first = await desk.engine.take("s", desk.tree)
            shell(desk.tree, "rm -r a; echo y > a")
            await desk.engine.restore("s", desk.tree, first.tree_hash)
            shell(desk.tree, "rm -r a p")
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[1:] == counts[:-1], counts
anyio.run(main)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3], timeout=60)


def test_no_descriptor_is_left_open_by_work_that_breaks_off_at_any_step(tmp_path: Path) -> None:
    """Every few calls of the system one fails: in snapshots, restores and forks, and in the threads that help them."""
    script = f"""
import errno, gc, itertools, os, shutil, anyio
from pathlib import Path
from server.errors import RookeryError
from tests.unit.checkpoints.workspaces import open_desk, shell
STEPS = ("rename", "replace", "unlink", "rmdir", "mkdir", "open", "write", "utime", "fstat", "dup", "copy_file_range")
async def main():
    base = Path({str(tmp_path)!r})
    with open_desk(base) as desk:
        shell(desk.tree, "for d in 1 2 3; do mkdir -p $d/e; for f in 1 2 3 4 5; do echo $d$f > $d/f$f; done; done")
        first = await desk.engine.take("s", desk.tree)
        forks = itertools.count()
        def edit():
            shutil.rmtree(desk.tree / "2", ignore_errors=True)
            for name in ("1/f1", "3/new"):
                (desk.tree / name).write_text("y")
        async def work():
            await desk.engine.take("s", desk.tree)
            await desk.engine.restore("s", desk.tree, first.tree_hash)
            place = base / f"fork{{next(forks)}}"
            place.mkdir()
            await desk.engine.materialise(first.tree_hash, place, key="fork")
        edit()
        await work()
        before = len(os.listdir("/proc/self/fd"))
        broken_off = 0
        for name in STEPS:
            original = getattr(os, name)
            for at in (1, 2, 3, 5, 9, 17):
                count = itertools.count(1)
                def broken(*args, **options):
                    if next(count) == at:
                        raise OSError(errno.EIO, "broken")
                    return original(*args, **options)
                edit()
                setattr(os, name, broken)
                try:
                    await work()
                except (RookeryError, OSError):
                    broken_off += 1
                finally:
                    setattr(os, name, original)
                if next(count) <= at:
                    break  # It is not called so often: a later one would not fail either.
        gc.collect()
        left = len(os.listdir("/proc/self/fd"))
        assert broken_off > 30, broken_off
        assert left == before, (left, before)
anyio.run(main)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3], timeout=120)


@pytest.fixture
def sharing_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that can share blocks between files."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(600 << 20)
    for command in (["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], ["mount", "-o", "loop", str(image), str(place)]):
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            pytest.skip("needs mkfs.xfs and the right to mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


async def test_a_fork_shares_blocks_where_the_file_system_can_and_still_nothing_else(sharing_disk: Path) -> None:
    with open_desk(sharing_disk) as desk:
        shell(desk.tree, "head -c 60000000 /dev/urandom > large")
        shell(desk.tree, "for i in $(seq 20); do head -c 500000 /dev/urandom > f$i; done")
        snapshot = await desk.engine.take("s", desk.tree)
        os.sync()
        free = os.statvfs(sharing_disk).f_bavail * os.statvfs(sharing_disk).f_frsize
        fork = desk.fork_place()
        await desk.engine.materialise(snapshot.tree_hash, fork)
        os.sync()
        assert free - os.statvfs(sharing_disk).f_bavail * os.statvfs(sharing_disk).f_frsize < 10_000_000
        assert describe(fork) == describe(desk.tree)
        shell(fork, "echo changed >> large; echo changed > f1")
        assert (await desk.another().take("again", desk.tree)).tree_hash == snapshot.tree_hash
        await desk.engine.materialise(snapshot.tree_hash, second := desk.fork_place("second"))
        assert describe(second) == describe(desk.tree)
