"""What is no longer needed goes, what is needed stays, whoever is at work meanwhile."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.checkpoints.objects import GRACE_S
from server.checkpoints.work import Stop
from server.errors import ErrorCode, RookeryError
from tests.unit.checkpoints.workspaces import Desk, describe, open_desk, shell


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


def age(desk: Desk, seconds: float) -> None:
    """Make all objects older."""
    for path in (desk.home / "objects").glob("[0-9a-f][0-9a-f]/*"):
        os.utime(path, (time.time() - seconds, time.time() - seconds))


async def test_only_what_no_tree_needs_is_removed(desk: Desk) -> None:
    shell(desk.tree, "mkdir keep drop; echo kept > keep/file; head -c 10000 /dev/urandom > drop/file")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "rm -r drop; head -c 6000000 /dev/urandom > large")
    second = await desk.engine.take("s", desk.tree)
    assert await desk.engine.collect_garbage([first.tree_hash, second.tree_hash], grace_s=0) == 0
    await desk.engine.forget("s")
    assert await desk.engine.collect_garbage([second.tree_hash], grace_s=0) > 10_000
    fork = desk.fork_place()
    await desk.another().materialise(second.tree_hash, fork)
    assert describe(fork) == describe(desk.tree)
    with pytest.raises(RookeryError) as caught:
        await desk.another().materialise(first.tree_hash, desk.fork_place("other"))
    assert caught.value.code is ErrorCode.CHECKPOINT_NOT_FOUND
    await desk.engine.collect_garbage([], grace_s=0)
    assert desk.object_count() == 0


async def test_what_is_young_stays_for_its_record_may_not_be_written_yet(desk: Desk) -> None:
    shell(desk.tree, "echo x > file")
    await desk.engine.take("s", desk.tree)
    await desk.engine.forget("s")
    assert await desk.engine.collect_garbage([]) == 0
    assert desk.object_count() == 2
    age(desk, GRACE_S + 1)
    assert await desk.engine.collect_garbage([]) > 0


async def test_trees_seen_lately_stay_without_a_record(desk: Desk) -> None:
    """Also the state before a restore, which is handed out as the way to undo it."""
    shell(desk.tree, "echo one > file")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "echo two > file")
    restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
    age(desk, GRACE_S + 1)
    await desk.engine.collect_garbage([])
    await desk.engine.restore("s", desk.tree, restored.before.tree_hash)
    assert (desk.tree / "file").read_text() == "two\n"


async def test_an_old_object_that_is_used_again_becomes_young(desk: Desk) -> None:
    shell(desk.tree, "echo same > file")
    await desk.engine.take("s", desk.tree)
    await desk.engine.forget("s")
    age(desk, GRACE_S + 1)
    batch = desk.objects.batch()
    digest = batch.put(b"same\n")
    assert batch.written == 0, "it was there already"
    await desk.engine.collect_garbage([])
    assert desk.objects.read(digest) == b"same\n"


async def test_nothing_is_removed_while_someone_works_with_the_store(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell(desk.tree, "echo x > file")
    await desk.engine.take("s", desk.tree)
    await desk.engine.forget("s")
    monkeypatch.setattr("server.checkpoints.garbage._LOCK_TRIES", 2)
    with desk.objects.shared(Stop()):
        assert await desk.engine.collect_garbage([], grace_s=0) == 0
    assert await desk.engine.collect_garbage([], grace_s=0) > 0


async def test_an_object_cut_short_by_a_power_cut_is_written_again(desk: Desk) -> None:
    batch = desk.objects.batch()
    digest = batch.put(b"content")
    name = digest.hex()
    path = desk.home / "objects" / name[:2] / name[2:]
    path.chmod(0o600)
    os.truncate(path, 0)
    batch = desk.objects.batch()
    assert batch.put(b"content") == digest
    assert batch.written == 1
    assert desk.objects.read(digest) == b"content"


async def test_what_writers_that_died_left_unfinished_goes_too(desk: Desk) -> None:
    left = desk.home / "objects" / "tmp" / "999-dead-0"
    left.write_bytes(bytes(1000))
    assert await desk.engine.collect_garbage([]) == 0
    os.utime(left, (0, 0))
    assert await desk.engine.collect_garbage([]) == 1000
    assert not left.exists()


async def test_a_wrong_hash_among_the_living_stops_the_collection(desk: Desk) -> None:
    shell(desk.tree, "echo x > file")
    snapshot = await desk.engine.take("s", desk.tree)
    await desk.engine.forget("s")
    with pytest.raises(RookeryError) as caught:
        await desk.engine.collect_garbage([snapshot.tree_hash, "cp_1"], grace_s=0)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert desk.object_count() == 2


WORKER = """
import sys, anyio
from pathlib import Path
from server.checkpoints import Checkpoints, ObjectStore
from tests.unit.checkpoints.workspaces import describe
async def main():
    base, tree = Path(sys.argv[1]), Path(sys.argv[2])
    engine = Checkpoints(ObjectStore(base / "objects"), base / "index")
    (tree / "sub").mkdir()
    for number, _ in enumerate(sys.stdin):
        for step in range(10):
            for name in ("a", "b", "sub/c"):
                (tree / name).write_text(f"content {(number * 7 + step) % 12} of {name}")
            snapshot = await engine.take("s", tree)
            fork = base.parent / f"fork-{number}-{step}"
            fork.mkdir()
            await engine.materialise(snapshot.tree_hash, fork)
            assert describe(fork) == describe(tree)
        print("done", flush=True)
anyio.run(main)
"""


async def test_another_process_takes_snapshots_while_garbage_is_collected_all_the_time(desk: Desk) -> None:
    """Contents come back after their trees were dropped, so old objects are used again under the sweep."""
    command = [sys.executable, "-c", WORKER, str(desk.home), str(desk.tree)]
    root = Path(__file__).parents[3]
    freed = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        # Not select(): it fails on descriptors above 1,023, which a long test run may have.
        said = select.poll()
        said.register(child.stdout, select.POLLIN)
        for _ in range(5):
            child.stdin.write(b"go\n")
            child.stdin.flush()
            while not said.poll(0):
                freed += await desk.engine.collect_garbage([])
            assert child.stdout.readline() == b"done\n"
            age(desk, GRACE_S + 1)
        child.stdin.close()
    assert child.returncode == 0
    assert freed > 0
