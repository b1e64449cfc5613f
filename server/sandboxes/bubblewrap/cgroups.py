"""Control groups for sandboxes: found by trying, used where this process may write, both versions.

A group is made below the server's own place in the hierarchy, so that limits set on the server by others go on to
hold for its sandboxes. In version 2 a group that has processes cannot hand controllers on, so the nearest ancestor
that does and is writable is taken. Where nothing is writable (a plain user without delegation, most containers) there
are no groups; the resource limits of :mod:`.limits` are all that holds then.

Sources: ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1`` of Linux.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.sandboxes.base import Limits
from server.sandboxes.bubblewrap.limits import CPU_SHARES, NICENESS

_MIB: Final = 1 << 20
_PERIOD_US: Final = 100_000
_PREFIX: Final = "rookery-"
_NAME: Final = re.compile(_PREFIX + r"(\d+)-[0-9a-f]{16}")
_CONTROLLERS: Final = ("memory", "pids", "cpu")
_SWEEP_S: Final = 3.0
_SWEEP_PAUSE_S: Final = 0.02
_OWN_PROCESSES: Final = 4
"""bubblewrap's monitor and init, and room for the moment in which the starter becomes the command."""


@dataclass(frozen=True)
class _Place:
    """Where groups can be made for some controllers."""

    directory: Path
    controllers: frozenset[str]
    unified: bool


class ControlGroup:
    """The group of one sandbox, in one or several hierarchies. All methods block for a few system calls only."""

    def __init__(self, directories: Mapping[Path, _Place]) -> None:
        self._directories = dict(directories)

    @property
    def joins(self) -> list[str]:
        """The ``cgroup.procs`` files to write a process into."""
        return [str(directory / "cgroup.procs") for directory in self._directories]

    def kill(self) -> None:
        """Send SIGKILL to all members. Members may fork meanwhile: call again until :meth:`remove` succeeds."""
        for directory, place in self._directories.items():
            with contextlib.suppress(OSError):
                if place.unified:
                    (directory / "cgroup.kill").write_text("1")
                    continue
            for process in _members(directory):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)

    def members(self) -> set[int]:
        """Process ids of all members."""
        return {process for directory in self._directories for process in _members(directory)}

    def memory_kills(self) -> int:
        """How often the kernel ended a member because the memory limit was reached."""
        count = 0
        for directory in self._directories:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    for line in (directory / name).read_text().splitlines():
                        word, _, value = line.partition(" ")
                        count += int(value) if word == "oom_kill" else 0
        return count

    def remove(self) -> bool:
        """Remove the group; False while it has members."""
        for directory in list(self._directories):
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return False
            del self._directories[directory]
        return True


class ControlGroups:
    """The places where this process can make groups. Finding them costs a few milliseconds: keep it.

    Args:
        proc: another ``/proc`` than the real one, in tests only.
        root: another ``/sys/fs/cgroup``, in tests only.
    """

    def __init__(self, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> None:
        self._places = list(_find_places(proc, root))

    @property
    def controllers(self) -> frozenset[str]:
        """What can be limited here, of memory, pids and cpu."""
        return frozenset(name for place in self._places for name in place.controllers)

    def create(self, limits: Limits) -> ControlGroup:
        """Make a group with these limits. What the machine does not offer is left out.

        Raises:
            OSError: a group could not be made although its place had been found. Nothing is left behind.
        """
        name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        made: dict[Path, _Place] = {}
        group = ControlGroup(made)
        try:
            for place in self._places:
                directory = place.directory / name
                directory.mkdir()
                made[directory] = place
                group = ControlGroup(made)
                for file, value in _values(place, limits).items():
                    (directory / file).write_text(value)
        except OSError:
            group.remove()
            raise
        return group

    def sweep(self) -> None:
        """Remove groups that servers left which are no more. Those that keep their members stay. Bounded."""
        left: list[ControlGroup] = []
        for place in self._places:
            with contextlib.suppress(OSError):
                for directory in place.directory.iterdir():
                    match = _NAME.fullmatch(directory.name)
                    if match is not None and not _is_alive(int(match[1])):
                        left.append(ControlGroup({directory: place}))
        # Members die with their server, which takes a moment on a busy machine. Nothing is killed here: seen from
        # another pid namespace, a living server looks dead.
        deadline = time.monotonic() + _SWEEP_S
        while left := [group for group in left if not group.remove()]:
            if time.monotonic() > deadline:
                return
            time.sleep(_SWEEP_PAUSE_S)


def _members(directory: Path) -> list[int]:
    try:
        return [int(line) for line in (directory / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _values(place: _Place, limits: Limits) -> dict[str, str]:
    """File → content for the controllers of a place, in the order in which they must be written."""
    values: dict[str, str] = {}
    memory = str(limits.memory_mb * _MIB)
    quota = str(max(1000, int(limits.cpus * _PERIOD_US)))
    if "memory" in place.controllers:
        values |= {"memory.max": memory} if place.unified else {"memory.limit_in_bytes": memory}
        if (place.directory / "memory.swap.max").exists():
            values["memory.swap.max"] = "0"
    if "pids" in place.controllers:
        values["pids.max"] = str(limits.processes + _OWN_PROCESSES)
    if "cpu" in place.controllers:
        if place.unified:
            values |= {"cpu.max": f"{quota} {_PERIOD_US}", "cpu.weight.nice": str(NICENESS)}
        else:
            period = {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": quota}
            values |= {**period, "cpu.shares": str(CPU_SHARES)}
    return values


def _find_places(proc: Path, root: Path) -> Iterable[_Place]:
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
        mounts = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:
        return
    own = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    for mount in mounts:
        fields, _, kind = mount.partition(" - ")
        shown, point = fields.split()[3:5]
        words = kind.split()
        if not Path(point).is_relative_to(root):
            continue
        if words[0] == "cgroup2" and "" in own:
            place = _unified_place(Path(point), _below(own[""], shown))
        elif words[0] == "cgroup":
            place = _old_place(Path(point), words[2].split(","), own, shown)
        else:
            continue
        if place is not None and _can_make_groups(place):
            yield place


def _below(path: str, shown: str) -> str:
    """``path`` of a group as a path below the mount, which may show only the part from ``shown`` on."""
    return path.removeprefix(shown).lstrip("/") if shown != "/" and path.startswith(shown) else path.lstrip("/")


def _unified_place(point: Path, path: str) -> _Place | None:
    directory = point / path
    for candidate in [directory, *directory.parents]:
        if not candidate.is_relative_to(point):
            return None
        with contextlib.suppress(OSError):
            offered = set((candidate / "cgroup.subtree_control").read_text().split())
            usable = frozenset(offered.intersection(_CONTROLLERS))
            if usable and os.access(candidate, os.W_OK) and os.access(candidate / "cgroup.procs", os.W_OK):
                return _Place(candidate, usable, unified=True)
    return None


def _old_place(point: Path, options: list[str], own: Mapping[str, str], shown: str) -> _Place | None:
    usable = frozenset(options).intersection(_CONTROLLERS)
    if not usable:
        return None
    for controllers, path in own.items():
        if usable & set(controllers.split(",")):
            return _Place(point / _below(path, shown), usable, unified=False)
    return None


def _can_make_groups(place: _Place) -> bool:
    """Permission bits do not tell (read-only mounts, delegation): only making one does."""
    trial = place.directory / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        trial.mkdir()
    except OSError:
        return False
    try:
        return all((trial / name).exists() for name in _required_files(place))
    finally:
        with contextlib.suppress(OSError):
            trial.rmdir()


def _required_files(place: _Place) -> list[str]:
    return ["cgroup.procs", *(name for name in _values(place, Limits()) if name != "memory.swap.max")]
