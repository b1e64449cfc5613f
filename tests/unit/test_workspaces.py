"""What a new workspace may be filled with, and what is refused before a session exists."""

from __future__ import annotations

import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from server.checkpoints import Skipped, SkipReason
from server.errors import ErrorCode, RookeryError
from server.settings import Settings
from server.workspaces import filling
from tests.house import settings_for


def refusal(source: dict[str, Any], settings: Settings) -> str:
    with pytest.raises(RookeryError) as refused:
        filling.check_source(source, settings)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    return refused.value.message


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({str(number): "" for number in range(filling.MAX_INLINE_FILES + 1)}, "entries"),
        # Each of these characters is three bytes.
        ({"a": "\u20ac" * (filling.MAX_INLINE_BYTES // 3 + 1)}, "MiB"),
        ({"a": "\ud800"}, "surrogates"),
        ({".": ""}, "itself"),
        ({"../a": ""}, ".."),
        ({"/etc/passwd": ""}, "workspace"),
        ({"a": "", "./a": ""}, "twice"),
        ({"a": "", "a/b": ""}, "directory"),
        ({"a\x00": ""}, "path"),
    ],
)
def test_inline_files_are_bounded_and_stay_in_the_workspace(files: dict[str, str], why: str, tmp_path: Path) -> None:
    assert why in refusal({"files": files}, settings_for(tmp_path))


def test_a_host_directory_is_copied_from_below_the_roots_only(tmp_path: Path) -> None:
    """F02, F03: a sibling with the same beginning, a link out, a relative path and a file are no such directory."""
    root = tmp_path / "ws"
    for path in (root / "in", tmp_path / "ws-evil"):
        path.mkdir(parents=True)
    (root / "out").symlink_to(tmp_path / "ws-evil")
    (root / "file").touch()
    settings = settings_for(tmp_path, workspace_roots=(root,))
    filling.check_source({"path": str(root / "in")}, settings)
    outside = (tmp_path / "ws-evil", root / "out", root / "in" / ".." / ".." / "ws-evil", root / "file")
    for name in (*map(str, outside), "ws/in"):
        refusal({"path": name}, settings)
    assert "ROOKERY_WORKSPACE_ROOTS" in refusal({"path": str(root)}, settings_for(tmp_path))


def packed(root: Path, limit: int, skipped: list[Skipped] | None = None) -> dict[str, tarfile.TarInfo]:
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        filling._pack_directory(tar, root, limit, [] if skipped is None else skipped)
    archive.seek(0)
    return {entry.name: entry for entry in tarfile.open(fileobj=archive).getmembers()}


def test_a_copied_directory_is_bounded_keeps_links_as_links_and_opens_no_special_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F03, F08: links are not followed, a FIFO does not block, a sparse 10 TB file is refused by its size."""
    root, secret = tmp_path / "root", tmp_path / "secret"
    root.mkdir()
    secret.write_text("secret")
    (root / "link").symlink_to(secret)
    (root / "file").write_text("x" * 100)
    (root / "below").mkdir()
    os.mkfifo(root / "below" / "fifo")
    skipped: list[Skipped] = []
    found = packed(root, 1 << 20, skipped)
    assert sorted(found) == ["below", "file", "link"]
    assert skipped == [Skipped("below/fifo", SkipReason.FIFO)]
    assert (found["link"].issym(), found["link"].linkname, found["link"].size) == (True, str(secret), 0)
    with (root / "sparse").open("wb") as file:
        file.truncate(10 << 40)
    with pytest.raises(RookeryError, match="MiB"):
        packed(root, 1 << 20)
    (root / "sparse").unlink()
    monkeypatch.setattr(filling, "MAX_COPIED_FILES", 2)
    with pytest.raises(RookeryError, match="entries"):
        packed(root, 1 << 20)
