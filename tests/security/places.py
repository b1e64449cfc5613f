"""A workspace that is attacked, and a directory of the host beside it that nothing may touch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.checkpoints.workspaces import Desk, describe, open_desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host beside the workspace; after the test it must be as it was, down to times and inodes."""
    place = tmp_path / "secret"
    place.mkdir(mode=0o750)
    (place / "key").write_text("the host's own")
    (place / "sub").mkdir()
    (place / "sub" / "key").write_text("deeper")
    before = {path: path.lstat() for path in (place, *place.rglob("*"))}
    contents = describe(place)
    yield place
    assert describe(place) == contents
    for path, state in before.items():
        now = path.lstat()
        assert (now.st_ino, now.st_uid, now.st_mode) == (state.st_ino, state.st_uid, state.st_mode), path
