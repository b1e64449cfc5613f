"""Directories that an agent filled with malice: walked, measured and removed without harm."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.sandboxes.bubblewrap import directories
from server.sandboxes.bubblewrap.disk import DiskWatch, measure_all
from server.sandboxes.tree import OPEN_DIRECTORY, TreeChangedError, measure, remove_tree, walk, write_files

DEEP = 10_000


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    """The test's directory, open."""
    descriptor = os.open(tmp_path, OPEN_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def dig(parent: int, name: str, levels: int) -> None:
    """Make a chain of directories that no path could name."""
    here = os.dup(parent)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, OPEN_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    with open(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here), "w") as file:
        file.write("x" * 10_000)
    os.close(here)


def test_f08_a_tree_deeper_than_any_path_is_walked_and_removed(tmp_path: Path, top: int) -> None:
    """F08: ten thousand levels, with a bounded number of open files."""
    (tmp_path / "tree").mkdir()
    tree = os.open("tree", OPEN_DIRECTORY, dir_fd=top)
    dig(tree, "d", DEEP)
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    count = 0
    for entry in walk(tree):
        count += 1
        if count % 1000 == 0:
            most = max(most, len(os.listdir("/proc/self/fd")) - before)
        last = entry
    assert count == DEEP + 1
    assert last.name == "bottom"
    assert most < 100
    assert measure(tree, 1 << 40) >= DEEP * 4096
    os.close(tree)
    assert remove_tree(top, "tree")
    assert list(tmp_path.iterdir()) == []


def test_f08_a_wide_tree_with_every_kind_of_entry_is_removed(tmp_path: Path, top: int) -> None:
    """F08: pipes, sockets, links out, hard links, odd names, closed directories."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    tree = tmp_path / "tree"
    for name in ("a/b/c", "a/b/d", "closed/inner", "-rf", "new\nline", "x" * 255):
        (tree / name).mkdir(parents=True)
    for number in range(3000):
        (tree / "a" / f"{number}").touch()
    os.mkfifo(tree / "pipe")
    (tree / "link").symlink_to(outside)
    (tree / "a" / "b" / "up").symlink_to("../../../outside")
    os.link(outside / "kept", tree / "hard")
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o600)
    (tree / "closed").chmod(0)
    (tree / "a").chmod(0o500)
    assert remove_tree(top, "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").read_text() == "kept"


def test_removing_is_idempotent_and_takes_links_and_files_as_what_they_are(tmp_path: Path, top: int) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "link").symlink_to("outside")
    (tmp_path / "file").touch()
    for name in ("link", "file", "never"):
        assert remove_tree(top, name)
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


def test_removing_stops_in_time_and_goes_on_later(tmp_path: Path, top: int) -> None:
    for number in range(50):
        (tmp_path / "tree" / f"{number}" / "x").mkdir(parents=True)
    assert not remove_tree(top, "tree", deadline=time.monotonic())
    assert (tmp_path / "tree").exists()
    assert remove_tree(top, "tree")
    assert not (tmp_path / "tree").exists()


def test_f05_a_directory_that_moves_during_a_walk_ends_it(tmp_path: Path) -> None:
    """F05: on the way up the walk would come out elsewhere."""
    tree = tmp_path / "tree"
    deep = tree
    for _ in range(100):
        deep /= "d"
    deep.mkdir(parents=True)
    descriptor = os.open(tree, OPEN_DIRECTORY)
    with pytest.raises(TreeChangedError):
        for entry in walk(descriptor):
            if entry.path.count("/") == 99:
                (tree / "d/d/d").rename(tmp_path / "moved")
    os.close(descriptor)


def test_f03_a_walk_and_a_measure_never_follow_a_link(tmp_path: Path, top: int) -> None:
    """F03: links to directories are entries, nothing more."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x" * 1_000_000)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    tree = os.open("tree", OPEN_DIRECTORY, dir_fd=top)
    assert [entry.path for entry in walk(tree)] == ["link"]
    assert measure(tree, 1 << 40) == 4096
    os.close(tree)
    with pytest.raises(OSError):
        measure_all([tmp_path / "tree" / "link"], 1)


def test_f04_files_are_not_written_through_links(tmp_path: Path, top: int) -> None:
    """F04: neither a link in the place of the file nor of its directory."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "link").symlink_to("outside")
    (tmp_path / "file").symlink_to("outside/new")
    for path in ("link/new", "file"):
        with pytest.raises(OSError):
            write_files(top, {path: b"x"}, None)
    for path in ("../up", "/up", "a/../../up", "", "a\0b"):
        with pytest.raises(ValueError):
            write_files(top, {path: b"x"}, None)
    write_files(top, {"a/b/c": b"x"}, None)
    assert (tmp_path / "a/b/c").read_bytes() == b"x"
    assert stat.S_IMODE((tmp_path / "a/b/c").stat().st_mode) == 0o600
    assert list((tmp_path / "outside").iterdir()) == []


def test_directories_are_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories.make(tmp_path, "one", None)
    with pytest.raises(FileExistsError):
        directories.make(tmp_path, "one", None)
    monkeypatch.setattr(os, "chown", lambda *_: os.stat(tmp_path / "missing"))
    with pytest.raises(OSError):
        directories.make(tmp_path, "two", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert list(directories.present(tmp_path)) == [("one", os.geteuid())]


def test_what_dead_servers_left_is_swept_and_what_living_ones_make_is_not(tmp_path: Path) -> None:
    for name in (".trash-0123456789abcdef", ".new-4194305-0123456789abcdef", f".new-{os.getpid()}-0123456789abcdef"):
        (tmp_path / name / "workspace").mkdir(parents=True)
    (tmp_path / "session" / "workspace").mkdir(parents=True)
    directories.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f".new-{os.getpid()}-0123456789abcdef", "session"}


def test_the_trial_of_a_living_process_is_nobodys_sandbox(tmp_path: Path) -> None:
    directories.make(tmp_path, directories.probe_id(), None)
    directories.make(tmp_path, "probe-4194305-0123456789abcdef", None)
    assert [name for name, _ in directories.present(tmp_path)] == ["probe-4194305-0123456789abcdef"]


def test_a_configuration_is_renewed_although_the_old_one_is_a_trap(tmp_path: Path) -> None:
    directories.make(tmp_path, "one", None)
    config = tmp_path / "one" / "config"
    (config / "projects").symlink_to(tmp_path)
    (config / "closed").mkdir(mode=0)
    directories.renew_config(tmp_path, "one", {"projects/p": b"new"}, None)
    assert (config / "projects").is_dir()
    assert not (config / "projects").is_symlink()
    assert [path.name for path in config.iterdir()] == ["projects"]
    assert {path.name for path in tmp_path.iterdir()} == {"one"}
    with pytest.raises(FileNotFoundError):
        directories.renew_config(tmp_path, "two", {}, None)


async def test_a_disk_watch_tells_growth_from_rest(tmp_path: Path) -> None:
    watch = DiskWatch([tmp_path], 1 << 20)
    assert not await watch.exceeded()
    (tmp_path / "big").write_bytes(os.urandom(3 << 20))
    os.sync()
    watch._rest_until = watch._due = 0.0
    assert await watch.exceeded()


async def test_a_disk_that_is_too_full_at_the_start_may_stay_so(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    watch = DiskWatch([tmp_path], 1 << 20)
    assert not await watch.exceeded()
    watch._rest_until = watch._due = 0.0
    assert not await watch.exceeded()
    (tmp_path / "more").write_bytes(bytes(3 << 20))
    watch._rest_until = watch._due = 0.0
    assert await watch.exceeded()


async def test_a_disk_watch_on_what_is_gone_says_nothing(tmp_path: Path) -> None:
    assert not await DiskWatch([tmp_path / "gone"], 1).exceeded()
