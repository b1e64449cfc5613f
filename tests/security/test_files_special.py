"""Files that block, never end or are too many, against the host that reads a workspace (row F08), made for real."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from server.checkpoints import Limits, SkipReason
from server.errors import ErrorCode, RookeryError
from tests.security.places import desk
from tests.unit.checkpoints.workspaces import PATIENCE_S, Desk, describe, open_desk, shell

__all__ = ["desk"]


@pytest.mark.skipif(os.geteuid() != 0, reason="making a device needs root")
async def test_f08_devices_are_never_opened(desk: Desk) -> None:
    """F08: reading a device can block, or have effects."""
    os.mknod(desk.tree / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    os.mknod(desk.tree / "disk", 0o666 | stat.S_IFBLK, os.makedev(7, 200))
    with anyio.fail_after(PATIENCE_S):
        snapshot = await desk.engine.take("s", desk.tree)
    assert [skipped.reason for skipped in snapshot.skipped] == [SkipReason.DEVICE, SkipReason.DEVICE]


async def test_f08_special_files_neither_block_nor_survive_a_rewind(desk: Desk) -> None:
    """F08: a FIFO without a writer would block a reader for ever."""
    shell(desk.tree, "mkdir sub; echo x > sub/file")
    first = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "rm sub/file; mkfifo sub/file sub/fifo")
    os.chdir(desk.tree)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    with anyio.fail_after(PATIENCE_S):
        restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
        assert restored.exact
        back = await desk.engine.restore("s", desk.tree, restored.before.tree_hash)
    assert [skipped.path for skipped in back.missing] == ["socket", "sub/fifo", "sub/file"]
    assert os.listdir(desk.tree / "sub") == []


async def test_f08_a_fifo_put_in_place_of_a_file_at_the_last_moment_does_not_block(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F08, F05: the kind of a file is looked at again once it is open, and opening never waits."""
    shell(desk.tree, "echo x > file")
    original = os.open
    swapped = False

    def swap_first(path: object, *args: object, **options: object) -> int:
        nonlocal swapped
        if path == "file" and not swapped:
            swapped = True
            shell(desk.tree, "rm file; mkfifo file")
        return original(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", swap_first)
    with anyio.fail_after(PATIENCE_S):
        snapshot = await desk.engine.take("s", desk.tree)
    assert swapped
    assert [skipped.reason for skipped in snapshot.skipped] == [SkipReason.FIFO]


async def test_f08_a_lease_on_a_file_does_not_hold_the_host_up(desk: Desk) -> None:
    """F08: opening a file with a write lease waits up to 45 s for its holder, unless one does not wait."""
    (desk.tree / "leased").write_text("x")
    (desk.tree / "other").write_text("y")
    program = (
        "import fcntl, os, signal, sys\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        f"fd = os.open({str(desk.tree / 'leased')!r}, os.O_RDWR)\n"
        f"fcntl.fcntl(fd, {fcntl.F_SETLEASE}, {fcntl.F_WRLCK})\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-I", "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with anyio.fail_after(20):
            snapshot = await desk.engine.take("s", desk.tree)
        assert [(skipped.path, skipped.reason) for skipped in snapshot.skipped] == [("leased", SkipReason.BUSY)]
        holder.communicate()
    again = await desk.engine.take("s", desk.tree)
    assert again.skipped == ()
    assert (await desk.engine.read(again.tree_hash, "leased")).data == b"x"


async def test_f08_more_files_than_allowed_are_refused_before_they_are_all_read(tmp_path: Path) -> None:
    """F08: a million files in one directory cost as much as the bound, no more."""
    with open_desk(tmp_path, Limits(max_entries=1000)) as desk:
        shell(desk.tree, "touch $(seq 3000)")
        looked_at = 0
        original = os.scandir

        def counting(path: int) -> object:
            return _Counted(original(path), tick)

        def tick() -> None:
            nonlocal looked_at
            looked_at += 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "scandir", counting)
            with pytest.raises(RookeryError) as caught:
                await desk.engine.take("s", desk.tree)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
        assert looked_at == 1001


class _Counted:
    """A directory's iterator that says how far it was read."""

    def __init__(self, found: Iterator[os.DirEntry[str]], tick: Callable[[], None]) -> None:
        self._found = found
        self._tick = tick

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        getattr(self._found, "close", lambda: None)()

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        for item in self._found:
            self._tick()
            yield item


async def test_f08_a_sparse_file_of_ten_terabytes_costs_next_to_nothing(desk: Desk) -> None:
    """F08: holes are neither read nor stored, and come back as holes."""
    shell(
        desk.tree, "truncate -s 10T file; mkdir sub; truncate -s 1T sub/empty; echo x | dd of=file seek=1G conv=notrunc"
    )
    with anyio.fail_after(PATIENCE_S):
        first = await desk.engine.take("s", desk.tree)
        shell(desk.tree, "rm file; echo y > sub/empty")
        restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
    assert restored.exact
    assert (desk.tree / "file").stat().st_size == 10 << 40
    assert (desk.tree / "file").stat().st_blocks * 512 < 16 << 20
    used = sum(path.stat().st_blocks * 512 for path in (desk.home / "objects").rglob("*") if path.is_file())
    assert used < 16 << 20


async def test_f08_a_file_that_grows_without_end_while_it_is_read_is_read_to_an_end(desk: Desk) -> None:
    """F08: a writer that never stops cannot keep the reader busy for ever."""
    path = desk.tree / "log"
    path.write_bytes(b"start")
    stop = threading.Event()

    def grow() -> None:
        with path.open("ab", buffering=0) as log:
            while not stop.is_set() and log.tell() < 1 << 30:
                log.write(bytes(range(256)) * 4096)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with anyio.fail_after(PATIENCE_S):
            snapshot = await desk.engine.take("s", desk.tree)
    finally:
        stop.set()
        writer.join()
    size = (await desk.engine.listing(snapshot.tree_hash))[0].size
    assert (await desk.engine.read(snapshot.tree_hash, "log", size - 1)).data == path.read_bytes()[size - 1 : size]
    again = await desk.engine.take("s", desk.tree)
    assert again.bytes == path.stat().st_size, "what changed under the reading is read again"


async def test_f08_names_like_options_and_with_line_feeds_are_only_names(desk: Desk) -> None:
    """F08: no program is run on them, and a patch quotes them."""
    for name in ("-rf", "--help", "new\nline", "$(touch pwned)", "; touch pwned", "\x1b[31mred"):
        (desk.tree / name).write_text(name)
    snapshot = await desk.engine.take("s", desk.tree)
    wanted = describe(desk.tree)
    shell(desk.tree, "rm -- *")
    await desk.engine.restore("s", desk.tree, snapshot.tree_hash)
    assert describe(desk.tree) == wanted
    patch = await desk.engine.export_patch(None, snapshot.tree_hash)
    assert b"\x1b" not in b"".join(line for line in patch.data.splitlines() if line.startswith(b"diff"))
    assert b'"b/new\\012line"' in patch.data
