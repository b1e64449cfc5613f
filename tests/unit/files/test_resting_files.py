"""Workspaces elsewhere that are left alone: sealed, compared before anyone goes on, looked at from this host."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from policies import Facts
from policies.paths import resolve
from policies.types import LinkLookup
from server.checkpoints import Seal
from server.errors import ErrorCode, RookeryError
from server.files import HostFiles, ReadableFiles, StoredFiles
from server.files.engines import THIN_AFTER
from server.sandboxes.base import AgentProcess
from tests.engines import PackedCheckpoints, open_packed_desk
from tests.unit.checkpoints.workspaces import Desk, describe, shell


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_packed_desk(tmp_path) as desk:
        yield desk


def packed(desk: Desk) -> PackedCheckpoints:
    assert isinstance(desk.engine, PackedCheckpoints)
    return desk.engine


def forge(path: Path, data: bytes) -> None:
    """Another content of the same size, with the very times and inode: as a block that the disk has lost."""
    state = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def lose_seal(desk: Desk) -> None:
    (packed(desk).room(desk.tree) / "seal").unlink()


def take_back_seal(desk: Desk) -> None:
    (packed(desk).room(desk.tree) / "seal").write_text("0" * 32)


LOSSES: dict[str, Callable[[Desk], None]] = {
    "a file": lambda desk: (desk.tree / "a" / "file").unlink(),
    "a content": lambda desk: forge(desk.tree / "a" / "file", b"1"),
    "a mode": lambda desk: (desk.tree / "a" / "file").chmod(0o600),
    "an empty directory": lambda desk: (desk.tree / "empty").rmdir(),
    "something new": lambda desk: (desk.tree / "new").touch(),
    "our own room": lambda desk: shutil.rmtree(packed(desk).room(desk.tree)),
    "the seal inside": lose_seal,
    "an older disk": take_back_seal,
}


async def test_a_workspace_that_is_what_it_was_goes_on_and_is_sealed_anew(desk: Desk) -> None:
    shell(desk.tree, "mkdir a empty; echo x > a/file")
    files = packed(desk).files("s", desk.tree)
    assert await files.intact(), "nothing was sealed, so nothing is missing"
    await files.seal()
    seal = await packed(desk).mirror.sealed("s")
    assert seal is not None
    await files.seal()
    assert await packed(desk).mirror.sealed("s") == seal, "it is left alone already"
    await packed(desk).close()
    assert await files.intact()
    assert await packed(desk).mirror.sealed("s") is None
    shell(desk.tree, "echo y > a/file")
    assert await files.intact(), "whoever works with it changes it"
    await files.seal()
    assert await packed(desk).mirror.sealed("s") != seal


FAST = ("a content", "our own room", "an older disk")


@pytest.mark.parametrize(
    "lose", [pytest.param(LOSSES[name], id=name, marks=[] if name in FAST else pytest.mark.slow) for name in LOSSES]
)
async def test_whatever_was_lost_is_noticed_each_time_and_a_fork_has_it(
    desk: Desk, lose: Callable[[Desk], None]
) -> None:
    shell(desk.tree, "mkdir a empty; echo x > a/file; chmod 0640 a/file; sleep 0.1")
    wanted = describe(desk.tree)
    files = packed(desk).files("s", desk.tree)
    snapshot = await files.take()
    await files.seal()
    await packed(desk).close()
    lose(desk)
    assert not await files.intact()
    assert not await files.intact()
    await desk.another().materialise(snapshot.tree_hash, fork := desk.fork_place())
    assert describe(fork) == wanted


def break_engine(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing of ours can be started in the sandbox."""

    async def refuse(*_: object, **__: object) -> AgentProcess:
        raise RookeryError(ErrorCode.SANDBOX_UNAVAILABLE, "The sandbox cannot be reached.")

    monkeypatch.setattr(packed(desk).sandbox(desk.tree), "start_root", refuse)


@pytest.mark.parametrize("lost", [False, True], ids=["nothing was lost", "a file was lost"])
async def test_a_workspace_that_could_not_be_sealed_is_compared_with_what_was_known_of_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    shell(desk.tree, "mkdir a; echo x > a/file")
    files = packed(desk).files("s", desk.tree)
    await files.seal()
    assert await files.intact()
    assert await files.write((b"a", b"new"), b"from outside")
    await packed(desk).close()
    with monkeypatch.context() as patch:
        break_engine(desk, patch)
        with pytest.raises(RookeryError, match="sandbox_unavailable"):
            await files.seal()
    assert await packed(desk).mirror.sealed("s") is not None
    if lost:
        (desk.tree / "a" / "new").unlink()
    assert await files.intact() is not lost
    assert (await packed(desk).mirror.sealed("s") is not None) is lost, "it stays so until somebody decides"


@pytest.mark.parametrize("damaged", [b"", b"[", b"[1, 2]", b'["no tree", ""]', b"{}"])
async def test_a_damaged_seal_is_no_leave_to_go_on_with_other_files(desk: Desk, damaged: bytes) -> None:
    """As a power cut leaves it: what was known last is compared, and nothing is taken for certain."""
    shell(desk.tree, "mkdir a; echo x > a/file")
    files = packed(desk).files("s", desk.tree)
    await files.seal()
    await packed(desk).close()
    (seal,) = (desk.home / "index").glob("s.sealed")
    seal.write_bytes(damaged)
    (desk.tree / "a" / "file").rename(desk.tree / "a" / "moved")
    assert not await files.intact()
    (desk.tree / "a" / "moved").rename(desk.tree / "a" / "file")
    assert await files.intact()

    on_this_host = HostFiles(packed(desk), "s", desk.tree, None)
    await packed(desk).mirror.seal("s", Seal(tree_hash=(await on_this_host.take()).tree_hash, token=""))
    seal.write_bytes(damaged)
    shell(desk.tree, "echo new > a/new")
    assert await on_this_host.intact()
    assert (await on_this_host.take()).files == 2


async def test_what_only_older_snapshots_need_goes_from_the_sandbox_and_comes_back_when_asked_for(desk: Desk) -> None:
    files = packed(desk).files("s", desk.tree)
    shell(desk.tree, "head -c 300000 /dev/urandom > file")
    first, wanted = await files.take(), describe(desk.tree)
    for number in range(THIN_AFTER):
        (desk.tree / "file").write_bytes(str(number).encode())
        await files.take()
    held = sum(path.stat().st_size for path in (packed(desk).room(desk.tree) / "objects").rglob("*"))
    assert held < 300_000
    assert (await files.restore(first.tree_hash)).exact
    assert describe(desk.tree) == wanted


async def test_what_is_kept_here_is_looked_at_as_the_workspace_itself(desk: Desk) -> None:
    shell(
        desk.tree,
        "mkdir -p a/b; echo one > a/file; ln -s a link; ln -s link/file two; ln -s /etc/passwd out; mkfifo fifo; "
        "printf x > $'\\xff'; head -c 5000000 /dev/urandom > large",
    )
    here: ReadableFiles = HostFiles(desk.another(), "h", desk.tree, None)
    snapshot = await here.take()
    stored: ReadableFiles = StoredFiles(desk.another(), snapshot.tree_hash)
    taken = await stored.take()
    assert (taken.tree_hash, taken.files, taken.bytes) == (snapshot.tree_hash, snapshot.files, snapshot.bytes)
    for depth, limit in ((1, 100), (8, 100), (8, 3)):
        found, wanted = await stored.listing((), depth, limit), await here.listing((), depth, limit)
        assert [(seen.path, seen.kind, seen.target) for seen in found.entries] == [
            (seen.path, seen.kind, seen.target) for seen in wanted.entries
        ]
        assert found.truncated == wanted.truncated
    for parts, offset, limit in (((b"a", b"file"), 1, 2), ((b"\xff",), 0, 9), ((b"large",), 4_900_000, 200_000)):
        assert await stored.read(parts, offset, limit) == await here.read(parts, offset, limit)
    for no_file in (b"out", b"link/file", b"fifo", b"a", b"none", b"a/file/x"):
        with pytest.raises(OSError):
            await stored.read(tuple(no_file.split(b"/")), 0, 10)
    for no_directory in (b"link", b"none", b"a/file"):
        with pytest.raises(OSError):
            await stored.listing(tuple(no_directory.split(b"/")), 1, 10)
    for path in ("two", "link/file", "a/../link/file", "none/x", "/etc/passwd"):

        def judge(links: LinkLookup, path: str = path) -> tuple[str, ...]:
            return resolve(path, Facts(links=links)).candidates

        assert await stored.judged(judge) == await here.judged(judge)
    with pytest.raises(RookeryError, match="checkpoint_not_found"):
        await StoredFiles(desk.another(), "0" * 64).listing((), 1, 10)
