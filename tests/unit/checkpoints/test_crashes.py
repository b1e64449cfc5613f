"""Crashes and full disks: the old state is intact, or running it again completes the work."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.checkpoints.keyed import KeyedTrees
from server.checkpoints.objects import ObjectStore
from server.checkpoints.records import Limits
from server.checkpoints.rewind import Rewind, materialise, prepare
from server.checkpoints.trees import Trees
from server.checkpoints.work import Stop
from server.errors import ErrorCode, RookeryError
from tests.unit.checkpoints.workspaces import Description, Desk, describe, open_desk, shell

STEPS = ("rename", "replace", "unlink", "rmdir", "mkdir", "symlink", "open", "write", "utime")
"""Calls of the system before each of which a crash is tried."""

BEFORE = (
    "mkdir -p a/b gone; for f in 1 2 3; do echo old $f > a/b/f$f; done; echo x > gone/file; ln -s a link; echo t > type"
)
AFTER = (
    "echo new > a/b/f1; rm a/b/f2; chmod 600 a/b/f3; rm -r gone; ln -sfn b link; rm type; mkdir type; "
    "echo y > type/in; mkdir -p fresh/deep; echo z > fresh/deep/file; chmod 750 a"
)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


def keyed(desk: Desk) -> KeyedTrees:
    return KeyedTrees(Trees(ObjectStore(desk.home / "objects")), desk.home / "index", Limits())


def take(desk: Desk) -> str:
    trees = keyed(desk)
    with trees.locked("s"):
        return trees.take("s", desk.tree, Stop())[0].tree_hash


def restore(desk: Desk, tree_hash: str) -> None:
    trees, stop = keyed(desk), Stop()
    with trees.locked("s"):
        before, index = prepare(trees, "s", desk.tree, None, stop)
        Rewind(trees, "s", desk.tree, None, before, index, stop).run(tree_hash)


def run_and_break(work: Callable[[], object], at: int, breaking: Callable[[], None]) -> int:
    """Do ``work`` in a process of its own that breaks before its ``at``-th step.

    Returns:
        Its exit status: 0 there were fewer steps; 1 it went through nevertheless; 2 ``storage_unavailable``.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def broken(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == at:
                breaking()
            return original(*args, **options)

        return call

    status = 3
    try:
        for name in STEPS:
            setattr(os, name, broken(getattr(os, name)))
        work()
        status = 1 if at and count >= at else 0
    except RookeryError as error:
        status = 2 if error.code is ErrorCode.STORAGE_UNAVAILABLE else 4
    except OSError:
        status = 2
    finally:
        os._exit(status)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_room() -> None:
    raise OSError(errno.ENOSPC, "no room")


def healed(desk: Desk, states: dict[str, Description]) -> None:
    """What a restart finds and does, and that the tree is one of the two states then, as promised."""
    pending = keyed(desk).pending("s")
    if pending is None:
        assert describe(desk.tree) in states.values()
    else:
        assert {pending.tree_hash, pending.before} == set(states)
        restore(desk, pending.tree_hash)
        assert describe(desk.tree) == states[pending.tree_hash]
    assert keyed(desk).pending("s") is None
    assert states[take(desk)] == describe(desk.tree)


FEW = 5
"""In the quick run every fifth step is tried, beginning elsewhere for each way to break; in the slow one all."""


@pytest.mark.parametrize(
    ("breaking", "statuses", "first_step", "stride"),
    [
        (die, {-9}, 1, FEW),
        (no_room, {1, 2}, 3, FEW),
        pytest.param(die, {-9}, 1, 1, marks=pytest.mark.slow),
        pytest.param(no_room, {1, 2}, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_a_restore_that_breaks_at_any_step_leaves_the_old_state_or_is_completed_by_a_second_run(
    desk: Desk, breaking: Callable[[], None], statuses: set[int], first_step: int, stride: int
) -> None:
    shell(desk.tree, BEFORE)
    first = take(desk)
    states = {first: describe(desk.tree)}
    shell(desk.tree, AFTER)
    second = take(desk)
    states[second] = describe(desk.tree)
    seen: set[int] = set()
    half_done = 0
    wanted = first
    for at in range(first_step, 1000, stride):
        status = run_and_break(lambda to=wanted: restore(desk, to), at, breaking)  # type: ignore[misc]
        if status == 0:
            break
        seen.add(status)
        half_done += keyed(desk).pending("s") is not None
        healed(desk, states)
        present = take(desk)
        wanted = first if present == second else second
    assert status == 0, "in the end it got through"
    assert seen == statuses
    assert at > 50, "there were many places to break at"
    assert half_done * stride > 10, "some of them in the midst"
    assert not [name for name in os.listdir(desk.tree.parent) if name.startswith(".rookery")]


@pytest.mark.parametrize(
    ("breaking", "stride"), [(die, FEW), (no_room, FEW), pytest.param(die, 1, marks=pytest.mark.slow)]
)
def test_a_snapshot_that_breaks_at_any_step_is_whole_the_next_time(
    desk: Desk, breaking: Callable[[], None], stride: int
) -> None:
    shell(desk.tree, BEFORE)
    wanted = describe(desk.tree)
    for at in range(1, 1000, stride):
        shell(desk.tree, f"echo {at} > a/b/f1; echo {at} > a/f2")
        wanted = describe(desk.tree)
        if (status := run_and_break(lambda: take(desk), at, breaking)) == 0:
            break
        tree_hash = take(desk)
        if at % 10 == 1:
            fork = desk.fork_place(f"fork{at}")
            materialise(keyed(desk), tree_hash, fork, None, None, Stop())
            assert describe(fork) == wanted
    assert status == 0
    assert at > 20
    assert describe(desk.tree) == wanted, "a snapshot changes nothing"


def test_a_disk_that_is_full_for_large_files_leaves_everything_as_it_was(desk: Desk) -> None:
    """The system's own refusal (``EFBIG``), which needs no privilege to provoke."""
    shell(desk.tree, "head -c 300000 /dev/urandom > large; echo x > small")
    first = take(desk)
    shell(desk.tree, "rm large; echo changed > small")
    take(desk)
    wanted = describe(desk.tree)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        restore(desk, first)

    assert run_and_break(limited, 0, die) == 2
    assert describe(desk.tree) == wanted
    assert keyed(desk).pending("s") is None
    restore(desk, first)
    assert (desk.tree / "large").stat().st_size == 300_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


async def test_a_full_disk_is_a_typed_error_and_room_heals_it(small_disk: Path) -> None:
    with open_desk(small_disk) as desk:
        shell(desk.tree, "head -c 900000 /dev/urandom > one; head -c 900000 /dev/urandom > two")
        first = await desk.engine.take("s", desk.tree)
        shell(desk.tree, "rm two; echo changed > one; echo more > three")
        await desk.engine.take("s", desk.tree)
        (small_disk / "ballast").write_bytes(bytes(1_200_000))
        wanted = describe(desk.tree)
        for _ in range(2):
            with pytest.raises(RookeryError) as caught:
                await desk.engine.restore("s", desk.tree, first.tree_hash)
            assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
            assert caught.value.retryable
            assert describe(desk.tree) == wanted
            assert await desk.engine.pending("s") is None
        fork = desk.fork_place()
        with pytest.raises(RookeryError) as caught:
            await desk.engine.materialise(first.tree_hash, fork)
        assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
        assert os.listdir(fork) == []
        shell(desk.tree, "head -c 2000000 /dev/urandom > three")
        with pytest.raises(RookeryError) as caught:
            await desk.engine.take("s", desk.tree)
        assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
        assert not list((desk.home / "objects" / "tmp").iterdir())
        shell(desk.tree, "echo more > three")
        (small_disk / "ballast").unlink()
        restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
        assert restored.exact


async def test_a_workspace_that_is_a_disk_of_its_own_is_restored_too(tmp_path: Path, small_disk: Path) -> None:
    with open_desk(tmp_path) as desk:
        tree = small_disk / "workspace"
        tree.mkdir()
        for place in (tree, small_disk):
            shell(place, "mkdir -p a; echo one > a/file")
            first = await desk.engine.take("s", place)
            shell(place, "rm -r a; echo two > b")
            restored = await desk.engine.restore("s", place, first.tree_hash)
            assert restored.exact
            assert (place / "a" / "file").read_text() == "one\n"
            assert not (place / "b").exists()
            shell(place, "rm -rf a")


@pytest.mark.slow
def test_kills_at_random_moments_of_real_work_leave_a_truthful_state(desk: Desk) -> None:
    """A real process, killed by the clock: 60 times in the midst of restores of a few hundred files."""
    shell(desk.tree, "for d in $(seq 20); do mkdir d$d; for f in $(seq 20); do echo $d $f > d$d/f$f; done; done")
    first = take(desk)
    states = {first: describe(desk.tree)}
    shell(
        desk.tree,
        "rm -r d1 d2 d3; for d in $(seq 4 20); do echo changed > d$d/f7; mkdir d$d/new; touch d$d/new/x; done",
    )
    second = take(desk)
    states[second] = describe(desk.tree)
    script = f"""
from pathlib import Path
from tests.unit.checkpoints.test_crashes import restore
from tests.unit.checkpoints.workspaces import Desk
desk = Desk(Path({str(desk.home)!r}), Path({str(desk.tree)!r}), None, None)
print("ready", flush=True)
while True:
    restore(desk, {first!r})
    restore(desk, {second!r})
"""
    for number in range(60):
        root = Path(__file__).parents[3]
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            try:
                child.wait(timeout=0.003 * number)
            except subprocess.TimeoutExpired:
                child.kill()
        healed(desk, states)
