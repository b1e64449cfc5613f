"""Checkpoints against git and cp, side by side in one run, as ratios of medians.

A rewind does what git does and more: it also keeps the present state for undoing, with all that git ignores. It is
compared twice, each time with the git command that is told as much as it is:

* ``git checkout COMMIT -- FILES`` is told the files and looks at nothing else; so is a rewind of a session that sleeps
  or whose agent is held still between two turns: nobody can have changed its files since its last checkpoint
  (``known_as``).
* ``git checkout -- .`` has to find out by itself what changed, as a rewind has to where the agent has left something
  running in the background.

Run: ``python benchmarks/checkpoints.py [--samples 9] [--part checkpoints|forks] [--directory DIR]``. The directory
should lie on the file system that Rookery's home will be on, and outside of temporary memory. Samples of both sides
alternate, so that a busy machine slows both; targets never share a directory, and nothing is deleted before the end
(ext4 makes new files slowly for a while after many were deleted).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio

from server.checkpoints import Checkpoints, ObjectStore

FILES = 20_000
FILES_PER_DIRECTORY = 10
SMALL = 2_000
"""Bytes in a file of the tree that is checkpointed."""
FORK_BYTES = 200 << 20
CHANGED = 10

GIT_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "benchmark",
    "GIT_AUTHOR_EMAIL": "benchmark@localhost",
    "GIT_COMMITTER_NAME": "benchmark",
    "GIT_COMMITTER_EMAIL": "benchmark@localhost",
}


def make_tree(root: Path, files: int, size: int, seed: int) -> None:
    """A tree like a project's: packages, modules, ten files in each, sizes that vary."""
    numbers = random.Random(seed)
    for start in range(0, files, FILES_PER_DIRECTORY):
        number = start // FILES_PER_DIRECTORY
        directory = root / f"package{number % 20}" / f"part{number % 7}" / f"module{number}"
        directory.mkdir(parents=True)
        for at in range(FILES_PER_DIRECTORY):
            (directory / f"file{at}.txt").write_bytes(numbers.randbytes(int(size * numbers.uniform(0.2, 1.8))))


def processor_time() -> float:
    """Seconds that this process and its children that are over have used, of users and of the kernel."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


class Bench:
    """Times of named sides, in milliseconds."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self.work: dict[str, list[float]] = {}
        """Of the processors: what a side costs, whoever else is at work."""

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start, worked = time.perf_counter(), processor_time()
        yield
        self.times.setdefault(name, []).append((time.perf_counter() - start) * 1000)
        self.work.setdefault(name, []).append((processor_time() - worked) * 1000)

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def report(self, what: str, ours: str, theirs: str, bound: float | None) -> dict[str, object]:
        # The median of the ratios of neighbouring samples is steadier than the ratio of medians on a busy machine.
        pairs = zip(self.times[ours], self.times[theirs], strict=True)
        ratio = self.median(ours) / self.median(theirs)
        paired = statistics.median(one / other for one, other in pairs)
        work = statistics.median(self.work[ours]) / statistics.median(self.work[theirs])
        target = f"target ≤ {bound:.1f}" if bound else "for comparison"
        print(
            f"{what:58} {self.median(ours):8.1f} ms  against {self.median(theirs):8.1f} ms   "
            f"ratio {ratio:5.2f} (pairwise {paired:5.2f}, processors {work:5.2f}; {target})"
        )
        return {
            "what": what,
            "ours_ms": self.median(ours),
            "theirs_ms": self.median(theirs),
            "ratio": ratio,
            "work": work,
        }


def git(directory: Path, tree: Path, *arguments: str) -> None:
    command = ["git", f"--git-dir={directory}", f"--work-tree={tree}", *arguments]
    subprocess.run(command, check=True, cwd=tree, env=GIT_ENVIRONMENT, stdout=subprocess.DEVNULL)


def change(files: list[Path], stamp: str) -> None:
    for path in files:
        path.write_text(f"changed {stamp} {path.name}\n" * 40)


async def checkpoint_and_rewind(base: Path, samples: int) -> list[dict[str, object]]:
    tree, repository = base / "tree", base / "repository.git"
    tree.mkdir()
    make_tree(tree, FILES, SMALL, 1)
    engine = Checkpoints(ObjectStore(base / "objects"), base / "index")
    bench = Bench()
    with bench.timed("first"):
        first = await engine.take("tree", tree)
    subprocess.run(["git", "init", "-q", "--bare", str(repository)], check=True, env=GIT_ENVIRONMENT)
    git(repository, tree, "config", "gc.auto", "0")
    with bench.timed("git first"):
        git(repository, tree, "add", "-A")
        git(repository, tree, "commit", "-q", "-m", "first")
    git(repository, tree, "tag", "base")
    everything = sorted(tree.rglob("file*.txt"))
    numbers = random.Random(2)

    async def ours(stamp: str, files: list[Path]) -> None:
        change(files, stamp)
        with bench.timed("take"):
            snapshot = await engine.take("tree", tree)
        assert snapshot.changed == len(files), snapshot.changed
        with bench.timed("restore"):
            restored = await engine.restore("tree", tree, first.tree_hash)
        assert restored.exact
        assert restored.written == len(files), restored.written
        change(files, stamp + "again")
        snapshot = await engine.take("tree", tree)
        with bench.timed("restore known"):
            restored = await engine.restore("tree", tree, first.tree_hash, known_as=snapshot.tree_hash)
        assert restored.exact
        assert restored.written == len(files), restored.written

    def theirs(stamp: str, files: list[Path]) -> None:
        names = [str(path.relative_to(tree)) for path in files]
        change(files, stamp)
        with bench.timed("git commit"):
            git(repository, tree, "add", "-A")
            git(repository, tree, "commit", "-q", "-m", stamp)
        with bench.timed("git checkout paths"):
            git(repository, tree, "checkout", "-q", "base", "--", *names)
        git(repository, tree, "reset", "-q", "--hard", "HEAD")
        with bench.timed("git checkout commit"):
            git(repository, tree, "checkout", "-q", "base")
        git(repository, tree, "checkout", "-q", "-B", "work", "base")
        change(files, stamp + "again")
        with bench.timed("git checkout all"):
            git(repository, tree, "checkout", "-q", "--", ".")

    for number in range(samples):
        files = numbers.sample(everything, CHANGED)
        # Git leaves other times of modification behind, which a rewind would set right as well: not our work here.
        await engine.restore("tree", tree, first.tree_hash)
        await ours(f"ours {number}", files)
        git(repository, tree, "status", "--short")
        theirs(f"theirs {number}", files)
    return [
        bench.report("first checkpoint : first git add and commit", "first", "git first", None),
        bench.report("checkpoint of 10 changed in 20,000 : git add, commit", "take", "git commit", 1.5),
        bench.report("rewind, not still : git checkout -- .", "restore", "git checkout all", 1.5),
        bench.report("rewind, still : git checkout COMMIT -- FILES", "restore known", "git checkout paths", 1.5),
        bench.report("rewind, not still : git checkout COMMIT", "restore", "git checkout commit", None),
        bench.report("rewind, not still : git checkout COMMIT -- FILES", "restore", "git checkout paths", None),
    ]


async def fork(base: Path, samples: int, files: int, name: str) -> list[dict[str, object]]:
    tree = base / f"tree-{name}"
    tree.mkdir()
    make_tree(tree, files, FORK_BYTES // files, 3)
    engine = Checkpoints(ObjectStore(base / "objects"), base / "index")
    bench = Bench()
    snapshot = await engine.take(f"tree-{name}", tree)
    os.sync()

    async def ours(number: int) -> None:
        target = base / f"ours-{name}-{number}"
        target.mkdir()
        with bench.timed("fork"):
            await engine.materialise(snapshot.tree_hash, target, key=f"ours-{name}-{number}")

    def theirs(number: int) -> None:
        with bench.timed("cp"):
            subprocess.run(["cp", "-a", str(tree), str(base / f"theirs-{name}-{number}")], check=True)

    def empty(number: int) -> None:
        """The part of the time that goes into making files and directories, without any content."""
        target = base / f"empty-{name}-{number}"
        with bench.timed("empty"):
            for directory, _, names in os.walk(tree):
                copy = target / os.path.relpath(directory, tree)
                copy.mkdir(exist_ok=True)
                fd = os.open(copy, os.O_RDONLY)
                for file in names:
                    os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
                os.close(fd)

    for number in range(samples):
        order: list[Callable[[], object]] = [lambda n=number: theirs(n)]  # type: ignore[misc]
        if number % 2:
            order[0]()
            await ours(number)
        else:
            await ours(number)
            order[0]()
        empty(number)
        os.sync()
    row = bench.report(f"fork of 200 MiB in {files:,} files : cp -a", "fork", "cp", 1.0)
    seconds = bench.median("fork") / 1000
    print(
        f"    {files / seconds:,.0f} files/s, {snapshot.bytes / seconds / 1e6:,.0f} MB/s; of its time making files "
        f"takes {bench.median('empty') / bench.median('fork'):.0%}, the rest is copying their content in the kernel"
    )
    return [row]


async def main(samples: int, part: str | None, directory: Path) -> None:
    base = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=directory))
    rows: list[dict[str, object]] = []
    try:
        if part != "forks":
            rows += await checkpoint_and_rewind(base, samples)
        if part != "checkpoints":
            rows += await fork(base, samples, 20_000, "small")
            rows += await fork(base, samples, 400, "large")
        print(json.dumps(rows))
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--part", choices=["checkpoints", "forks"], help="only this")
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    options = parser.parse_args()
    anyio.run(main, options.samples, options.part, options.directory)
    sys.exit(0)
