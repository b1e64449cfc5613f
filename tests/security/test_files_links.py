"""Links of all kinds against the host that reads and rewinds a workspace (rows F04 to F06), made for real."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from server.checkpoints.descent import Descent
from server.checkpoints.work import TreeMovedError
from server.errors import ErrorCode, RookeryError
from tests.security.places import desk, secret
from tests.unit.checkpoints.workspaces import PATIENCE_S, Desk, describe, shell

__all__ = ["desk", "secret"]

LINKS: dict[str, str] = {
    "a file that became a link": "rm sub/file; ln -s {secret}/key sub/file",
    "a directory that became a link": "rm -r sub; ln -s {secret} sub",
    "a directory that became a link to one with the same names": "rm -r sub; ln -s {secret}/sub sub",
    "a parent that became a link": "mv sub real; ln -s {secret} sub",
    "a dangling link": "rm sub/file; ln -s {secret}/new sub/file",
    "a link to the root": "rm -r sub; ln -s / sub",
    "a relative link out": "rm -r sub; ln -s ../secret sub",
    "a chain of links": "rm -r sub; ln -s one two; ln -s {secret} one; ln -s two sub",
    "a loop": "rm -r sub; ln -s sub sub",
}


@pytest.mark.parametrize("attack", LINKS.values(), ids=LINKS)
async def test_f04_the_host_never_reads_or_writes_through_a_link_of_the_agent(
    desk: Desk, secret: Path, attack: str
) -> None:
    """F04: a link is stored as a link and replaced as a link, wherever it points (class of CVE-2026-39861)."""
    shell(desk.tree, "mkdir -p sub/deep; echo mine > sub/file; echo mine > sub/key; echo x > sub/deep/file")
    first = await desk.engine.take("s", desk.tree)
    wanted = describe(desk.tree)
    shell(desk.tree, attack.format(secret=secret))
    present = await desk.engine.take("s", desk.tree)
    everything = await desk.engine.compare(None, present.tree_hash)
    for change in everything.entries:
        if change.after is not None and change.after.kind == "file":
            read = await desk.engine.read(present.tree_hash, change.path)
            assert b"host" not in read.data
            assert b"deeper" not in read.data
    restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
    assert restored.exact
    assert describe(desk.tree) == wanted
    await desk.engine.restore("s", desk.tree, restored.before.tree_hash)
    fork = desk.fork_place()
    await desk.engine.materialise(restored.before.tree_hash, fork)
    assert describe(fork) == describe(desk.tree)


async def test_f04_a_link_in_place_of_the_workspace_itself_is_refused(desk: Desk, secret: Path) -> None:
    """F04: the root is opened like everything below it."""
    shell(desk.tree, "echo x > file")
    first = await desk.engine.take("s", desk.tree)
    desk.tree.rename(desk.tree.with_name("moved"))
    desk.tree.symlink_to(secret)
    for work in (
        lambda: desk.engine.take("s", desk.tree),
        lambda: desk.engine.restore("s", desk.tree, first.tree_hash),
        lambda: desk.engine.materialise(first.tree_hash, desk.tree),
    ):
        with pytest.raises(RookeryError) as caught:
            await work()
        assert caught.value.code in (ErrorCode.SANDBOX_LOST, ErrorCode.STORAGE_UNAVAILABLE)


async def test_f04_a_staged_file_cannot_be_led_astray_by_a_link_of_its_name(desk: Desk, secret: Path) -> None:
    """F04: what is restored is renamed into place; a link that stands there is replaced, not followed."""
    shell(desk.tree, "echo mine > key; chmod 600 key")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, f"rm key; ln -s {secret}/key key")
    await desk.engine.restore("s", desk.tree, first.tree_hash)
    assert (desk.tree / "key").read_text() == "mine\n"
    assert not (desk.tree / "key").is_symlink()


SWAPPER = """
import os, sys
tree, secret = sys.argv[1], sys.argv[2]
os.chdir(tree)
print("ready", flush=True)
while True:
    for name in ("sub", "sub/deep", "sub/file"):
        try:
            os.rename(name, "aside")
            os.symlink(secret + "/sub" if name == "sub/deep" else secret, name)
            os.unlink(name)
            os.rename("aside", name)
        except OSError:
            # The host was at work between two of these steps: put the workshop in order and go on.
            for fix in (lambda: os.unlink(name), lambda: os.rename("aside", name), lambda: os.makedirs("sub/deep")):
                try:
                    fix()
                except OSError:
                    pass
"""


async def test_f05_directories_swapped_for_links_all_the_time_lead_nowhere(desk: Desk, secret: Path) -> None:
    """F05: a process swaps files and directories for links to the host's, as fast as it can, while the host works."""
    shell(desk.tree, "mkdir -p sub/deep; for f in $(seq 30); do echo $f > sub/f$f; echo $f > sub/deep/f$f; done")
    shell(desk.tree, "echo mine > sub/file; echo mine > sub/key; echo mine > sub/deep/key")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "for f in $(seq 30); do echo changed > sub/f$f; rm sub/deep/f$f; done")
    command = [sys.executable, "-I", "-S", "-c", SWAPPER, str(desk.tree), str(secret)]
    results: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as swapper:
        try:
            assert swapper.stdout is not None
            assert swapper.stdout.readline() == b"ready\n"
            deadline = time.monotonic() + 3
            with anyio.fail_after(PATIENCE_S):
                while time.monotonic() < deadline:
                    try:
                        present = await desk.engine.take("s", desk.tree)
                        for change in (await desk.engine.compare(None, present.tree_hash)).entries:
                            if change.after is not None and change.after.kind == "file":
                                read = await desk.engine.read(present.tree_hash, change.path)
                                assert b"host" not in read.data
                                assert b"deeper" not in read.data
                        await desk.engine.restore("s", desk.tree, first.tree_hash)
                        results.append("done")
                    except RookeryError as error:
                        assert error.code in (ErrorCode.SESSION_BUSY, ErrorCode.STORAGE_UNAVAILABLE), error.detail
                        results.append(error.code)
        finally:
            swapper.kill()
    assert results
    await desk.engine.restore("s", desk.tree, first.tree_hash)
    assert (await desk.engine.take("s", desk.tree)).tree_hash == first.tree_hash, "at rest, all is well again"


@pytest.mark.parametrize("name", ["file", "sub"])
async def test_f05_what_becomes_a_link_between_the_look_and_the_opening_is_not_followed(
    desk: Desk, secret: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """F05: the check and the use are one call; the swap is made at the worst moment, on purpose."""
    shell(desk.tree, "echo mine > file; mkdir sub; echo mine > sub/key")
    original = os.open
    swapped = False

    def swap_first(path: object, *args: object, **options: object) -> int:
        nonlocal swapped
        if path == name and not swapped:
            swapped = True
            shell(desk.tree, f"rm -r {name}; ln -s {secret / 'key' if name == 'file' else secret} {name}")
        return original(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", swap_first)
    snapshot = await desk.engine.take("s", desk.tree)
    monkeypatch.undo()
    assert swapped
    for path in (desk.home / "objects").glob("[0-9a-f][0-9a-f]/*"):
        assert b"host" not in path.read_bytes(), "what the host holds never came into the store"
    again = await desk.engine.take("s", desk.tree)
    (link,) = [item for item in await desk.engine.listing(again.tree_hash) if item.path == name]
    assert link.target == os.fspath(secret / "key" if name == "file" else secret)
    assert snapshot.tree_hash == again.tree_hash or snapshot.skipped, "the first look saw the link, or knew of trouble"


async def test_f05_a_directory_moved_away_under_the_reader_is_noticed_on_the_way_back(tmp_path: Path) -> None:
    """F05: going up by ``..`` must not lead where the directory was moved to."""
    inside = tmp_path / "tree"
    deep = inside.joinpath(*["d"] * 70)
    deep.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    descent = Descent(os.open(inside, os.O_RDONLY))
    for _ in range(70):
        descent.enter("d")
    (inside / "d" / "d" / "d").rename(tmp_path / "elsewhere" / "d")
    with pytest.raises(TreeMovedError):
        for _ in range(70):
            descent.leave()
    descent.close()


async def test_f06_nothing_is_written_through_a_hard_link(desk: Desk, tmp_path: Path) -> None:
    """F06: an agent's file that is linked to one outside is replaced; the other name keeps content, mode and time."""
    outside = tmp_path / "outside"
    outside.write_text("precious")
    outside.chmod(0o640)
    before = outside.stat()
    shell(desk.tree, "echo mine > content; printf precious > mode; chmod 600 mode; touch -d @1000 mode")
    first = await desk.engine.take("s", desk.tree)
    wanted = describe(desk.tree)
    for name in ("content", "mode"):
        (desk.tree / name).unlink()
        os.link(outside, desk.tree / name)
    restored = await desk.engine.restore("s", desk.tree, first.tree_hash, owner=os.geteuid())
    assert describe(desk.tree) == wanted
    assert restored.separated == 1, "one differed in mode and time only, and got a file of its own"
    after = outside.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, 1)
    assert outside.read_text() == "precious"


async def test_f06_hard_links_inside_the_tree_come_back_as_files_with_the_right_content(desk: Desk) -> None:
    """F06: two names of one file are kept and restored as two files; a change through one is seen at both."""
    shell(desk.tree, "echo one > a; ln a b; mkdir sub; ln a sub/c")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "echo two > b")
    second = await desk.engine.take("s", desk.tree)
    assert second.changed == 3
    await desk.engine.restore("s", desk.tree, first.tree_hash)
    assert [(desk.tree / name).read_text() for name in ("a", "b", "sub/c")] == ["one\n"] * 3
    assert {(desk.tree / name).stat().st_nlink for name in ("a", "b", "sub/c")} == {1}
