"""Hostile repositories and forged checkpoints against the host (rows F09 and F11), made for real."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from server.checkpoints.manifest import (
    DIRECTORY,
    FILE,
    SYMLINK,
    DamagedError,
    Entry,
    decode_directory,
    encode_directory,
)
from server.errors import ErrorCode, RookeryError
from tests.security.places import desk, secret
from tests.unit.checkpoints.workspaces import Desk, describe, shell

__all__ = ["desk", "secret"]

GIT_TRAPS = (
    "git init -q .; git config core.fsmonitor 'touch {mark}'; git config core.hooksPath /tmp; "
    "git config filter.x.clean 'touch {mark}'; git config filter.x.smudge 'touch {mark}'; "
    "git config diff.x.textconv 'touch {mark}'; git config diff.external 'touch {mark}'; "
    "git config core.pager 'touch {mark}'; git config alias.apply '!touch {mark}'; "
    "echo '* filter=x diff=x' > .gitattributes; echo x > file; "
    "printf '#!/bin/sh\\ntouch {mark}\\n' > .git/hooks/post-checkout; chmod +x .git/hooks/*"
)


async def test_f09_no_git_and_no_other_program_is_run_on_the_agents_tree(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F09: filters, hooks, fsmonitor and attributes of a hostile repository are only bytes to the host."""
    mark = tmp_path / "pwned"
    shell(desk.tree, GIT_TRAPS.format(mark=mark))
    mark.unlink(missing_ok=True)
    spawned: list[object] = []
    for name in ("posix_spawn", "posix_spawnp", "fork", "forkpty", "execve", "execv", "system"):
        monkeypatch.setattr(os, name, lambda *args, **options: spawned.append(args))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: spawned.append(args))
    first = await desk.engine.take("s", desk.tree)
    (desk.tree / "file").write_text("changed")
    (desk.tree / ".git" / "config").write_text("[core]\n\tfsmonitor = false\n")
    restored = await desk.engine.restore("s", desk.tree, first.tree_hash)
    await desk.engine.compare(restored.before.tree_hash, first.tree_hash, lines=True)
    await desk.engine.diff(restored.before.tree_hash, first.tree_hash)
    patch = await desk.engine.export_patch(None, first.tree_hash)
    await desk.engine.materialise(first.tree_hash, fork := desk.fork_place())
    monkeypatch.undo()
    assert spawned == []
    assert not mark.exists()
    assert b"fsmonitor" not in patch.data, "the agent's repository does not travel home in a patch"
    assert describe(fork) == describe(desk.tree)


BAD_NAMES = [b"..", b".", b"", b"a/b", b"../up", b"/abs", b"nul\0", b"x" * 256]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_f11_a_forged_directory_cannot_name_its_way_out(desk: Desk, secret: Path, name: bytes) -> None:
    """F11: zip-slip by a manifest; refused when it is read, before anything is written."""
    batch = desk.objects.batch()
    content = batch.put(b"evil")
    forged = encode_directory(0o755, [Entry(FILE, name, 0o644, 0, 4, 1, 0, content)])
    root = batch.put(forged)
    outer = batch.put(encode_directory(0o755, [Entry(DIRECTORY, b"sub", 0, 0, 4, 1, 0, root)]))
    with pytest.raises(DamagedError):
        decode_directory(forged)
    shell(desk.tree, "mkdir sub; echo x > sub/file")
    wanted = describe(desk.tree)
    for digest in (root, outer):
        for work in (
            lambda digest=digest: desk.engine.restore("s", desk.tree, digest.hex()),
            lambda digest=digest: desk.engine.materialise(digest.hex(), desk.fork_place(f"fork{digest.hex()}")),
        ):
            with pytest.raises(RookeryError) as caught:
                await work()
            assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert describe(desk.tree) == wanted
    assert not (desk.home.parent / "up").exists()


async def test_f11_a_link_and_a_file_below_it_cannot_be_written_one_through_the_other(desk: Desk, secret: Path) -> None:
    """F11: an archive may hold ``a -> /outside`` and then ``a/file``; a directory object cannot hold a name twice."""
    batch = desk.objects.batch()
    content = batch.put(b"evil")
    below = batch.put(encode_directory(0o755, [Entry(FILE, b"key", 0o644, 0, 4, 1, 0, content)]))
    link = Entry(SYMLINK, b"a", 0o777, 0, 4, 1, 0, os.fsencode(secret))
    root = batch.put(encode_directory(0o755, [link, Entry(DIRECTORY, b"a", 0, 0, 4, 1, 0, below)]))
    with pytest.raises(RookeryError) as caught:
        await desk.engine.materialise(root.hex(), desk.fork_place())
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE


@pytest.mark.parametrize("cut", [0, 5, 20, 40, -1])
def test_f11_a_damaged_directory_is_refused_whole(cut: int) -> None:
    """F11: no part of an object that is not what its kind should be is used."""
    data = encode_directory(0o755, [Entry(FILE, b"name", 0o644, 0, 4, 1, 0, bytes(32))])
    with pytest.raises(DamagedError):
        decode_directory(data[:cut])
    with pytest.raises(DamagedError):
        decode_directory(data + b"x")
