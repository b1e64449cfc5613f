"""Differences between trees: counted, shown, and taken home as a patch that real git applies."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.checkpoints import ChangeKind, Kind, printable
from server.checkpoints.lines import MAX_EDITS, changed_blocks, count_changes, split_lines
from server.errors import ErrorCode, RookeryError
from tests.unit.checkpoints.workspaces import Desk, open_desk, shell


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


def git_apply(tree: Path, patch: bytes, *options: str) -> None:
    """Apply a patch with the real git, in a tree of our own and with no configuration but git's defaults."""
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    subprocess.run(["git", "init", "-q", "."], cwd=tree, env=environment, check=True)
    command = ["git", "apply", "--whitespace=nowarn", *options, "-"]
    result = subprocess.run(command, cwd=tree, env=environment, input=patch, capture_output=True, check=False)
    assert result.returncode == 0, (result.stderr.decode(errors="replace"), patch[:2000])


def as_git_sees(tree: Path) -> dict[bytes, tuple[object, ...]]:
    """Files and links; of modes only whether the owner may execute."""
    found: dict[bytes, tuple[object, ...]] = {}
    for directory, directories, files in os.walk(os.fsencode(tree)):
        if b".git" in directories and directory == os.fsencode(tree):
            directories.remove(b".git")
        for name in [*files, *directories]:
            path = os.path.join(directory, name)
            state = os.lstat(path)
            key = os.path.relpath(path, os.fsencode(tree))
            if stat.S_ISLNK(state.st_mode):
                found[key] = ("link", os.readlink(path))
            elif stat.S_ISREG(state.st_mode):
                found[key] = (bool(state.st_mode & 0o100), Path(os.fsdecode(path)).read_bytes())
    return found


lines = st.sampled_from(
    [b"one", b"two", b"three", b"", b"- minus", b"+ plus", b"@@ -1 +1 @@", b"\\ No", b"cr\r", b"\xff"]
)
texts = st.lists(lines, max_size=30).map(b"\n".join)
contents = st.one_of(texts, texts.map(lambda text: text + b"\n"), st.binary(max_size=300), st.just(b"\0" * 5000))
path_names = st.sampled_from(
    [
        *(b"a", b"b", b"d/a", b"d/b", b"d/e/f", b"b/a", b"-rf", b"a b", b"trailing ", b"sp ace/x y"),
        *(b'q"uote', b"new\nline", b"t\tab", b"\xff\xfe", b"\xc3\xa4", b"back\\slash"),
    ]
)
entries = st.one_of(
    st.tuples(st.just("file"), contents, st.booleans()),
    st.tuples(st.just("link"), st.sampled_from([b"nowhere", b"../up", b"/etc/passwd", b"lost\nline"]), st.just(False)),
)
trees = st.dictionaries(path_names, entries, max_size=8)


def write(root: Path, tree: dict[bytes, tuple[str, bytes, bool]]) -> None:
    taken: set[bytes] = set()
    for name, (kind, content, executable) in sorted(tree.items()):
        if any(name.startswith(other + b"/") for other in taken):
            continue
        taken.add(name)
        path = Path(os.fsdecode(os.path.join(os.fsencode(root), name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "link":
            path.symlink_to(os.fsdecode(content))
        else:
            path.write_bytes(content)
            path.chmod(0o755 if executable else 0o644)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(before=trees, after=trees)
async def test_git_applies_the_patch_between_any_two_trees_and_takes_it_back(
    before: dict[bytes, tuple[str, bytes, bool]],
    after: dict[bytes, tuple[str, bytes, bool]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with open_desk(tmp_path_factory.mktemp("patch")) as desk:
        write(desk.tree, before)
        old = await desk.engine.take("old", desk.tree)
        new_tree = desk.fork_place("new")
        write(new_tree, after)
        new = await desk.engine.take("new", new_tree)
        patch = await desk.engine.export_patch(old.tree_hash, new.tree_hash)
        changes = await desk.engine.compare(old.tree_hash, new.tree_hash)
        assert (changes.total == 0) is (as_git_sees(desk.tree) == as_git_sees(new_tree))
        home = desk.fork_place("theirs")
        await desk.engine.materialise(old.tree_hash, home)
        if not patch.data:
            assert as_git_sees(desk.tree) == as_git_sees(new_tree)
            return
        git_apply(home, patch.data)
        assert as_git_sees(home) == as_git_sees(new_tree)
        git_apply(home, patch.data, "-R")
        assert as_git_sees(home) == as_git_sees(desk.tree)


async def test_a_patch_from_nothing_brings_the_whole_tree(desk: Desk) -> None:
    shell(desk.tree, "mkdir -p a/b; echo x > a/b/c; head -c 100000 /dev/urandom > image; ln -s a/b/c link; : > empty")
    snapshot = await desk.engine.take("s", desk.tree)
    patch = await desk.engine.export_patch(None, snapshot.tree_hash)
    assert (patch.files, patch.omitted) == (4, ())
    home = desk.fork_place("theirs")
    git_apply(home, patch.data)
    assert as_git_sees(home) == as_git_sees(desk.tree)


async def test_a_patch_says_what_it_cannot_carry(desk: Desk) -> None:
    shell(desk.tree, "echo x > file; mkdir sub; echo x > sub/file")
    before = await desk.engine.take("s", desk.tree)
    shell(
        desk.tree,
        "mkdir .git sub/.GIT empty; echo x > .git/config; echo x > sub/.GIT/hook; mkfifo pipe; chmod 600 file",
    )
    shell(desk.tree, "chmod 700 sub; echo x > 'git~1'; ln -s x .gitmodules; echo y > 'a\\.git'; echo fine > .gitignore")
    after = await desk.engine.take("s", desk.tree)
    patch = await desk.engine.export_patch(before.tree_hash, after.tree_hash)
    assert {omitted.path for omitted in patch.omitted} == {
        *(".git/config", "sub/.GIT/hook", "empty", "pipe", "file", "sub", "git~1", ".gitmodules", "a\\.git")
    }
    home = desk.fork_place("theirs")
    await desk.engine.materialise(before.tree_hash, home)
    git_apply(home, patch.data)
    assert (home / ".gitignore").read_text() == "fine\n"


async def test_a_patch_over_its_bound_is_refused_and_can_be_had_in_parts(desk: Desk) -> None:
    shell(desk.tree, "mkdir a; head -c 3000000 /dev/urandom > a/large; truncate -s 1T sparse; echo x > small")
    snapshot = await desk.engine.take("s", desk.tree)
    with pytest.raises(RookeryError) as caught:
        await desk.engine.export_patch(None, snapshot.tree_hash, max_bytes=1 << 20)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    patch = await desk.engine.export_patch(None, snapshot.tree_hash, paths=["small"], max_bytes=1 << 20)
    assert patch.files == 1
    with pytest.raises(RookeryError) as caught:
        await desk.engine.export_patch(None, snapshot.tree_hash, paths=["../up"])
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_changes_are_counted_listed_and_bounded(desk: Desk) -> None:
    shell(desk.tree, "mkdir -p a/b; printf '1\\n2\\n3\\n' > a/b/text; echo x > gone; head -c 99 /dev/zero > binary")
    before = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "printf '1\\nzwei\\n3\\n4\\n' > a/b/text; rm gone; echo y >> binary; mkdir -p n/e/w; ln -s x link")
    after = await desk.engine.take("s", desk.tree)
    changes = await desk.engine.compare(before.tree_hash, after.tree_hash, lines=True)
    assert (changes.added, changes.removed, changes.changed, changes.truncated) == (2, 1, 2, False)
    shown = {change.path: (change.kind, change.lines_added, change.lines_removed) for change in changes.entries}
    assert shown == {
        "a/b/text": (ChangeKind.CHANGED, 2, 1),
        "binary": (ChangeKind.CHANGED, None, None),
        "gone": (ChangeKind.REMOVED, 0, 1),
        "link": (ChangeKind.ADDED, 1, 0),
        "n/e/w": (ChangeKind.ADDED, None, None),
    }
    few = await desk.engine.compare(before.tree_hash, after.tree_hash, limit=2)
    assert (few.total, len(few.entries), few.truncated) == (5, 2, True)
    assert (await desk.engine.compare(after.tree_hash, after.tree_hash)).total == 0
    everything = await desk.engine.compare(None, after.tree_hash)
    assert everything.added == after.files + 1, "files, links and one empty directory"


async def test_a_diff_for_reading_is_bounded_and_names_binary_files(desk: Desk) -> None:
    shell(desk.tree, "seq 100 > numbers; head -c 99 /dev/zero > binary; printf 'no end' > open")
    before = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "sed -i 's/^50$/fifty/' numbers; echo y >> binary; printf 'no end!' > open; mkdir empty")
    after = await desk.engine.take("s", desk.tree)
    diff = await desk.engine.diff(before.tree_hash, after.tree_hash)
    assert not diff.truncated
    assert "@@ -47,7 +47,7 @@\n 47\n 48\n 49\n-50\n+fifty\n 51\n 52\n 53\n" in diff.text
    assert "Binary files a/binary and b/binary differ\n" in diff.text
    assert "-no end\n\\ No newline at end of file\n+no end!\n\\ No newline at end of file\n" in diff.text
    assert "empty" in diff.text
    short = await desk.engine.diff(before.tree_hash, after.tree_hash, max_bytes=100)
    assert short.truncated
    assert len(short.text.encode()) <= 100
    assert diff.text.startswith(short.text)
    one = await desk.engine.diff(before.tree_hash, after.tree_hash, paths=["open"])
    assert "numbers" not in one.text


async def test_the_files_of_a_snapshot_are_read_without_its_tree(desk: Desk) -> None:
    shell(desk.tree, "mkdir -p a/b; printf 0123456789 > a/b/file; ln -s a/b dir; chmod 640 a/b/file")
    snapshot = await desk.engine.take("s", desk.tree)
    shell(desk.tree, "rm -r a")
    root = await desk.engine.listing(snapshot.tree_hash)
    assert [(item.path, item.kind, item.target) for item in root] == [
        ("a", Kind.DIRECTORY, None),
        ("dir", Kind.SYMLINK, "a/b"),
    ]
    (item,) = await desk.engine.listing(snapshot.tree_hash, "a/b")
    assert (item.path, item.mode, item.size) == ("a/b/file", 0o640, 10)
    part = await desk.engine.read(snapshot.tree_hash, "./a//b/file", offset=3, limit=4)
    assert (part.data, part.size) == (b"3456", 10)
    assert (await desk.engine.read(snapshot.tree_hash, "a/b/file", offset=50)).data == b""
    for path in ("a/b", "dir", "dir/file", "a/b/file/x", "../a", "/a", "a/../a", "a\0", "missing", "", "\ud800"):
        with pytest.raises(RookeryError) as caught:
            await desk.engine.read(snapshot.tree_hash, path)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT, path
    with pytest.raises(RookeryError) as caught:
        await desk.engine.read(snapshot.tree_hash, "a/b/file", offset=-1)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


@given(before=st.lists(st.integers(0, 5), max_size=40), after=st.lists(st.integers(0, 5), max_size=40))
def test_changed_lines_are_as_few_as_possible_and_lead_from_one_text_to_the_other(
    before: list[int], after: list[int]
) -> None:
    old, new = [b"%d\n" % line for line in before], [b"%d\n" % line for line in after]
    blocks = changed_blocks(old, new)
    built: list[bytes] = []
    position = 0
    for block in blocks:
        built += old[position : block.before_start] + new[block.after_start : block.after_end]
        position = block.before_end
    assert built + old[position:] == new
    table = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i, one in enumerate(old):
        for j, other in enumerate(new):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    added, removed = count_changes(b"".join(old), b"".join(new))
    assert added + removed == len(old) + len(new) - 2 * table[-1][-1]


def test_a_hopeless_comparison_ends_soon_with_a_right_answer() -> None:
    old = [b"old %d\n" % number for number in range(MAX_EDITS * 20)]
    new = [b"new %d\n" % number for number in range(MAX_EDITS * 20)]
    (block,) = changed_blocks([b"same\n", *old], [b"same\n", *new])
    assert block == (1, len(old) + 1, 1, len(new) + 1)


@given(st.binary(max_size=200))
def test_lines_split_at_line_feeds_only_and_lose_nothing(data: bytes) -> None:
    parts = split_lines(data)
    assert b"".join(parts) == data
    assert all(part.count(b"\n") <= 1 and part for part in parts)


@given(st.binary(max_size=60))
def test_any_name_can_be_shown_on_one_line(name: bytes) -> None:
    shown = printable(os.fsdecode(name))
    assert shown.isprintable()
    shown.encode("utf-8")
