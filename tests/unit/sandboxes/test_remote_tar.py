"""Workspaces in and out of a sandbox elsewhere, as one compressed stream."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from server.errors import ErrorCode, RookeryError
from server.sandboxes.remote_tar import pack_remote, unpack_remote
from tests.engines import Here
from tests.unit.checkpoints.workspaces import describe, shell

LIMIT = 64 << 20


class Place:
    """A sandbox elsewhere, as it were, with its workspace."""

    def __init__(self, base: Path, name: str) -> None:
        self.workspace = base / name
        self.room = base / f"{name}-room"
        self.workspace.mkdir()
        self.room.mkdir()
        self.here = Here(self.room)

    def pack(self, path: str = ".", limit: int = LIMIT) -> AsyncIterator[bytes]:
        return pack_remote(self.here, path, limit, workspace=str(self.workspace), room=str(self.room))

    async def unpack(self, stream: AsyncIterator[bytes], limit: int = LIMIT) -> None:
        where = {"workspace": str(self.workspace), "room": str(self.room)}
        await unpack_remote(self.here, stream, owner=os.getuid(), limit=limit, **where)


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 10_000):
        yield data[start : start + 10_000]


async def test_a_workspace_goes_from_one_sandbox_to_another_unchanged_and_compressed(tmp_path: Path) -> None:
    one, other = Place(tmp_path, "one"), Place(tmp_path, "other")
    shell(
        one.workspace,
        "mkdir -p a/b empty; echo x > a/b/file; chmod 0751 a/b/file; ln -s ../nowhere a/link; "
        "yes | head -c 4000000 > text; mkfifo pipe; printf y > $'odd\\nname'; "
        "touch -d @1000000000 text a/b/file $'odd\\nname'",
    )
    await other.unpack(one.pack())
    (one.workspace / "pipe").unlink()
    assert describe(other.workspace) == describe(one.workspace)
    assert sum(process.received for process in one.here.processes) < 200_000


def archive_of(*entries: tuple[str, bytes, str]) -> bytes:
    """A tar of (name, type, link target or content)."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, kind, text in entries:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            data = text.encode()
            if kind == tarfile.REGTYPE:
                entry.size = len(data)
            else:
                entry.linkname = text
            archive.addfile(entry, io.BytesIO(data))
    return target.getvalue()


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "a climbing name": lambda out: archive_of(("../evil", tarfile.REGTYPE, "x")),
    "an absolute name": lambda out: archive_of((f"{out}/evil", tarfile.REGTYPE, "x")),
    "through a link": lambda out: archive_of(("l", tarfile.SYMTYPE, str(out)), ("l/evil", tarfile.REGTYPE, "x")),
    "a device": lambda out: archive_of(("d", tarfile.CHRTYPE, "")),
    "a hard link out": lambda out: archive_of(("h", tarfile.LNKTYPE, "../../secret/key")),
    "no archive": lambda out: b"x" * 2_000,
    "too much": lambda out: archive_of(("big", tarfile.REGTYPE, "x" * 300_000)),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
async def test_f11_entries_that_would_leave_the_workspace_are_refused(
    tmp_path: Path, make: Callable[[Path], bytes]
) -> None:
    """F11: what is checked on this host is checked in the sandbox too, where root writes."""
    (out := tmp_path / "secret").mkdir()
    (out / "key").write_text("root's own")
    place = Place(tmp_path, "one")
    with pytest.raises(RookeryError) as refused:
        await place.unpack(chunks(make(out)), limit=200_000)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    assert str(tmp_path) not in refused.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one-room", "secret"]
    assert {path.name: path.read_text() for path in out.iterdir()} == {"key": "root's own"}


@pytest.mark.parametrize(("path", "limit"), [("none", LIMIT), ("../one-room", LIMIT), ("text", 1_000)])
async def test_what_cannot_be_packed_is_a_typed_error(tmp_path: Path, path: str, limit: int) -> None:
    place = Place(tmp_path, "one")
    (place.workspace / "text").write_bytes(b"x" * 100_000)
    with pytest.raises(RookeryError) as refused:
        async for _ in place.pack(path, limit):
            pass
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


async def test_f08_a_stream_that_unfolds_without_end_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F08: root in the sandbox could send a bomb; this host counts what comes out of it."""
    place = Place(tmp_path, "one")
    bomb = tmp_path / "bomb"
    compressor = zlib.compressobj(1, wbits=31)
    bomb.write_bytes(b"".join(compressor.compress(bytes(1 << 20)) for _ in range(64)) + compressor.flush())
    start = place.here.start_root

    async def lying(argv: list[str], env: None = None) -> object:
        return await start(["/bin/cat", str(bomb)] if "pack" in argv else argv, env)

    monkeypatch.setattr(place.here, "start_root", lying)
    seen = 0
    with pytest.raises(RookeryError, match="too large"):
        async for piece in place.pack(limit=4 << 20):
            seen += len(piece)
    assert seen <= 4 << 20
