"""Trees for the tests of the checkpoint engine: made by a real shell, described to the last bit."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from server.checkpoints import Checkpoints, Limits, ObjectStore

PATIENCE_S = 60.0

Description = dict[bytes, tuple[object, ...]]


@dataclass
class Desk:
    """An engine with a home of its own, and a tree to work on."""

    home: Path
    tree: Path
    objects: ObjectStore
    engine: Checkpoints

    def another(self, limits: Limits | None = None) -> Checkpoints:
        """A second engine on the same home, as another process or a restarted server has it."""
        return Checkpoints(ObjectStore(self.home / "objects"), self.home / "index", limits)

    def fork_place(self, name: str = "fork") -> Path:
        place = self.home.parent / name
        place.mkdir()
        return place

    def object_count(self) -> int:
        return sum(1 for _ in (self.home / "objects").glob("[0-9a-f][0-9a-f]/*"))


@contextlib.contextmanager
def open_desk(base: Path, limits: Limits | None = None) -> Iterator[Desk]:
    tree = base / "workspace"
    tree.mkdir()
    objects = ObjectStore(base / "home" / "objects")
    try:
        yield Desk(base / "home", tree, objects, Checkpoints(objects, base / "home" / "index", limits))
    finally:
        objects.close()


def describe(root: Path) -> Description:
    """All that a tree holds: of files mode, content and time, of links the target, of directories the mode.

    Set-user-id and set-group-id of files are left out: checkpoints do not keep them.
    """
    found: Description = {b"": ("directory", stat.S_IMODE(root.stat().st_mode))}
    waiting = [os.fsencode(root)]
    while waiting:
        directory = waiting.pop()
        for entry in os.scandir(directory):
            state = entry.stat(follow_symlinks=False)
            name = os.path.relpath(entry.path, os.fsencode(root))
            mode = stat.S_IMODE(state.st_mode)
            if stat.S_ISDIR(state.st_mode):
                found[name] = ("directory", mode)
                waiting.append(entry.path)
            elif stat.S_ISREG(state.st_mode):
                content = Path(os.fsdecode(entry.path)).read_bytes()
                found[name] = ("file", mode & 0o1777, content, state.st_mtime_ns)
            elif stat.S_ISLNK(state.st_mode):
                found[name] = ("link", os.readlink(entry.path))
    return found


def shell(tree: Path, script: str | bytes) -> None:
    """Run a script in a tree as an agent's Bash would."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    subprocess.run(["bash", "-c", script], cwd=tree, env=environment, check=False, capture_output=True, timeout=60)


def quote(name: bytes) -> bytes:
    return os.fsencode(shlex.quote(os.fsdecode(name)))
