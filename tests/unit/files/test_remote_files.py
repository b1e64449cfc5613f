"""A workspace that lies in a sandbox elsewhere, looked after by the engine that is shipped there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import anyio
import pytest

from policies import Facts
from policies.paths import resolve
from policies.types import LinkLookup
from server.checkpoints import Snapshot
from server.errors import ErrorCode, RookeryError
from server.files import HostFiles, WorkspaceFiles, engines
from server.files.shipment import ENGINE
from tests.engines import PackedCheckpoints, open_packed_desk
from tests.unit.checkpoints.workspaces import Desk, describe, shell

MANY_KINDS = (
    "mkdir -p a/b/c empty 'sp ace' .git/objects; echo one > a/b/file; printf '\\0\\377' > binary; : > nothing; "
    "ln -s ../nowhere a/dangling; ln -s a/b dir; ln -s /etc/passwd out; chmod 0751 a; chmod 1777 empty; "
    "chmod 0400 binary; chmod 0555 a/b; printf x > 'sp ace/--rf'; printf y > $'new\\nline'; printf z > $'\\xff\\xfe'; "
    "head -c 4200000 /dev/urandom > large; truncate -s 9M sparse; echo end >> sparse; ln large hard; "
    "touch -d @1000000000.123456789 a/b/file"
)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_packed_desk(tmp_path) as desk:
        yield desk


def packed(desk: Desk) -> PackedCheckpoints:
    assert isinstance(desk.engine, PackedCheckpoints)
    return desk.engine


def test_what_is_shipped_is_whole_and_needs_the_standard_library_alone(tmp_path: Path) -> None:
    zipfile.ZipFile(BytesIO(ENGINE.archive)).extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import server.files.engine\n"
        "print(*sorted(n for n, m in sys.modules.items() if n.startswith('server') and not hasattr(m, '__path__')))\n"
        "print(*sorted(n for n, m in sys.modules.items() if 'site-packages' in str(getattr(m, '__file__', ''))))"
    )
    # -S: no site-packages; what is not of the standard library cannot be imported.
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code, tmp_path], capture_output=True, text=True, check=True)
    ours, foreign = ran.stdout.split("\n")[:2]
    assert ours.split() == sorted(ENGINE.modules), "no module is shipped that is not used"
    assert foreign == ""


async def test_a_tree_comes_back_and_goes_elsewhere_exact_to_the_last_bit(desk: Desk) -> None:
    shell(desk.tree, MANY_KINDS)
    first, wanted = await desk.engine.take("s", desk.tree), describe(desk.tree)
    shell(
        desk.tree, "chmod -R u+w .; rm -rf a large 'sp ace'; ln -s b a; echo new > out2; chmod 0700 .; echo >> sparse"
    )
    second, changed = await desk.engine.take("s", desk.tree), describe(desk.tree)
    assert changed != wanted
    restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
    assert restored.exact
    assert restored.before == Snapshot(second.tree_hash, second.files, second.bytes, (), 0)
    assert describe(desk.tree) == wanted
    again = await desk.engine.take("s", desk.tree)
    assert (again.tree_hash, again.files, again.changed) == (first.tree_hash, first.files, 0)
    await desk.engine.materialise(second.tree_hash, fork := desk.fork_place(), key="fork")
    assert describe(fork) == changed
    assert (await desk.engine.take("fork", fork)).tree_hash == second.tree_hash


async def test_everything_is_here_when_a_snapshot_is_told_and_the_sandbox_may_vanish(desk: Desk) -> None:
    shell(desk.tree, MANY_KINDS + "; rm sparse large hard")
    wanted = describe(desk.tree)
    snapshot = await desk.engine.take("s", desk.tree)
    await packed(desk).close()
    shutil.rmtree(packed(desk).room(desk.tree))
    shell(desk.tree, "chmod -R u+w .")
    shutil.rmtree(desk.tree)
    host = desk.another()
    assert (await host.read(snapshot.tree_hash, "a/b/file")).data == b"one\n"
    assert (await host.compare(None, snapshot.tree_hash)).added > 5
    assert b"a/b/file" in (await host.export_patch(None, snapshot.tree_hash)).data
    await host.materialise(snapshot.tree_hash, place := desk.fork_place())
    assert describe(place) == wanted


async def test_only_what_this_host_lacks_crosses_the_line(desk: Desk) -> None:
    shell(desk.tree, "head -c 3000000 /dev/urandom > known; echo x > other")
    await desk.engine.take("s", desk.tree)
    (twin := desk.fork_place("twin")).joinpath("known").write_bytes((desk.tree / "known").read_bytes())
    await desk.engine.take("twin", twin)
    assert sum(process.received for process in packed(desk).processes(twin)) < 10_000
    before = sum(process.received for process in packed(desk).processes(desk.tree))
    assert before > 3_000_000
    shell(desk.tree, "echo small > new")
    await desk.engine.take("s", desk.tree)
    assert sum(process.received for process in packed(desk).processes(desk.tree)) - before < 10_000


async def test_a_restore_brings_what_the_sandbox_has_lost_or_never_had(desk: Desk) -> None:
    shell(desk.tree, MANY_KINDS)
    first, wanted = await desk.engine.take("s", desk.tree), describe(desk.tree)
    shell(desk.tree, "chmod -R u+w .; rm -rf a large; echo x > y")
    shutil.rmtree(packed(desk).room(desk.tree) / "objects")
    await packed(desk).close()
    restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
    assert restored.exact
    assert describe(desk.tree) == wanted


async def test_nothing_changes_when_the_present_cannot_be_recorded(desk: Desk) -> None:
    shell(desk.tree, "echo one > file")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "echo two > file")

    async def refuse(present: Snapshot) -> None:
        assert (await desk.another().read(present.tree_hash, "file")).data == b"two\n", "it is here already"
        raise RookeryError(ErrorCode.STORAGE_UNAVAILABLE, "no")

    with pytest.raises(RookeryError, match="storage_unavailable"):
        await desk.engine.restore("s", desk.tree, first.tree_hash, on_present=refuse)
    assert (desk.tree / "file").read_text() == "two\n"
    assert await desk.engine.pending("s") is None
    assert (await desk.engine.restore("s", desk.tree, first.tree_hash)).exact


async def test_a_rewind_that_was_broken_off_is_named_and_finished(desk: Desk) -> None:
    shell(desk.tree, "echo one > file")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "echo two > file")
    second = await desk.engine.take("s", desk.tree)
    # What the engine leaves when it is killed between two files.
    (desk.tree.parent / ".rookery-restore-s").mkdir()
    journal = {"tree_hash": first.tree_hash, "before": second.tree_hash, "staging": ".rookery-restore-s"}
    (packed(desk).room(desk.tree) / "indexes" / "s.restore").write_text(json.dumps(journal))
    pending = await desk.engine.pending("s")
    assert pending is not None
    assert (pending.tree_hash, pending.before) == (first.tree_hash, second.tree_hash)
    assert (await desk.engine.restore("s", desk.tree, pending.tree_hash)).exact
    assert (desk.tree / "file").read_text() == "one\n"
    assert await desk.engine.pending("s") is None
    assert not (desk.tree.parent / ".rookery-restore-s").exists()


async def test_an_engine_that_ended_is_started_again_and_one_that_ends_at_work_is_a_typed_error(desk: Desk) -> None:
    shell(desk.tree, "echo one > file")
    first = await desk.engine.take("s", desk.tree)
    await packed(desk).processes(desk.tree)[-1].terminate()
    assert (await desk.engine.take("s", desk.tree)).tree_hash == first.tree_hash
    shell(desk.tree, "echo two > file")

    async def kill(_present: Snapshot) -> None:
        await packed(desk).processes(desk.tree)[-1].terminate()

    with pytest.raises(RookeryError, match="sandbox_lost"):
        await desk.engine.restore("s", desk.tree, first.tree_hash, on_present=kill)
    assert (desk.tree / "file").read_text() == "two\n"
    assert (await desk.engine.restore("s", desk.tree, first.tree_hash)).exact


async def test_a_cancelled_snapshot_ends_its_engine_and_holds_nothing_up(desk: Desk) -> None:
    shell(desk.tree, "head -c 8000000 /dev/urandom > file")
    await packed(desk).files("s", desk.tree).pending()
    process = packed(desk).processes(desk.tree)[-1]
    async with anyio.create_task_group() as group:
        group.start_soon(desk.engine.take, "s", desk.tree)
        while process.received < 100_000:
            await anyio.sleep(0.001)
        group.cancel_scope.cancel()
    assert process.returncode is not None
    assert (await desk.engine.take("s", desk.tree)).files == 1


async def test_an_engine_that_owes_the_answer_to_a_cancelled_question_is_not_gone_on_with(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "TRUSTED_S", -1.0)
    shell(desk.tree, "echo one > file")
    files = packed(desk).files("s", desk.tree)
    await files.seal()
    process = packed(desk).processes(desk.tree)[-1]
    asked = anyio.Event()
    write = process.write

    async def frozen(data: bytes) -> None:
        await write(data)
        asked.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(process, "write", frozen)
    async with anyio.create_task_group() as group:
        group.start_soon(files.intact)
        await asked.wait()
        group.cancel_scope.cancel()
    monkeypatch.setattr(process, "write", write)
    assert await files.intact(), "the answer to the look was taken, not the late one to the question before"


async def test_looking_and_writing_answer_as_on_the_host(desk: Desk, tmp_path: Path) -> None:
    """F03, F08: links, special files and what is not there are refused in the same way wherever the files are."""
    shell(
        desk.tree,
        "mkdir -p a/b; echo 1 > a/file; ln -s a link; ln -s /etc/passwd out; mkfifo fifo; echo > $'\\xff'",
    )
    os.chdir(desk.tree)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.chdir(tmp_path)
    here: WorkspaceFiles = HostFiles(desk.another(), "s", desk.tree, None)
    there: WorkspaceFiles = packed(desk).files("s", desk.tree)
    assert await there.listing((), 8, 100) == await here.listing((), 8, 100)
    assert await there.listing((), 8, 2) == await here.listing((), 8, 2)
    assert await there.read((b"a", b"file"), 1, 2) == await here.read((b"a", b"file"), 1, 2)
    for parts in ((b"out",), (b"link", b"file"), (b"fifo",), (b"socket",), (b"a",), (b"none",), (b"a", b"file", b"x")):
        told = []
        for files in (here, there):
            with pytest.raises(OSError) as refused:
                await files.read(parts, 0, 10)
            told.append(refused.value.errno)
        assert told[0] == told[1], parts
    assert await there.write((b"n", b"m", b"new"), b"\0data") is True
    assert await there.write((b"n", b"m", b"new"), b"other") is False
    assert (desk.tree / "n" / "m" / "new").read_bytes() == b"other"
    for parts in ((b"link", b"x"), (b"out",), (b"fifo",), (b"a",)):
        with pytest.raises(OSError):
            await there.write(parts, b"no")


async def test_a_judgement_sees_links_as_the_sandbox_does(desk: Desk) -> None:
    """F03: every end of a chain of links is found, in as many rounds as it takes."""
    shell(
        desk.tree,
        "mkdir real; touch real/file; ln -s real one; ln -s one two; ln -s two/file three; ln -s loop loop",
    )
    here: WorkspaceFiles = HostFiles(desk.another(), "s", desk.tree, None)
    there: WorkspaceFiles = packed(desk).files("s", desk.tree)
    for path in (
        "three",
        "two/file",
        "one/../two/file",
        "real/file",
        "none/x",
        "/etc/passwd",
        "/proc/self/cwd/two/file",
    ):

        def judge(links: LinkLookup, path: str = path) -> tuple[str, ...]:
            return resolve(path, Facts(links=links)).candidates

        found = await there.judged(judge)
        assert found == await here.judged(judge)
        if path.endswith("two/file"):
            assert "/workspace/real/file" in found
