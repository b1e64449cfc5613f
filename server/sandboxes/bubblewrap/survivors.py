"""Processes that a dead server left in a sandbox.

bubblewrap dies with the server, and its namespace with it; but the namespace's first process asks for that a moment
after it began, and one whose bubblewrap was killed before outlives both (measured: one of a few hundred kills). It is
known by its workspace, which no other process has mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PATIENCE_S: Final = 5.0
_PAUSE_S: Final = 0.02


def end_survivors(workspace: Path) -> bool:
    """Kill all processes that have a workspace mounted, and wait until they are gone; whether there were any.

    Blocks for at most five seconds. The caller has made sure that no living server uses the sandbox.
    """
    found = False
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        survivors = list(_survivors(workspace))
        if not survivors:
            return found
        found = True
        for process in survivors:
            _kill(process, workspace)
        time.sleep(_PAUSE_S)
    return found


def is_deserted(workspace: Path) -> bool:
    """Whether it is certain that no process has a workspace mounted, so that nothing in a sandbox can change it.

    False where processes cannot be looked into, as a server that is not root may find.
    """
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            mounts = (path / "mountinfo").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            if error.errno != errno.EINVAL:
                return False
            # A zombie: it is in no namespace any more.
            continue
        if _names(mounts, workspace):
            return False
    return True


def _survivors(workspace: Path) -> Iterator[int]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and _has_mounted(int(path.name), workspace):
            yield int(path.name)


def _has_mounted(process: int, workspace: Path) -> bool:
    """Whether a process sees the workspace as a mount of its own, from ``/proc/PID/mountinfo`` (field 4, proc(5))."""
    try:
        mounts = Path(f"/proc/{process}/mountinfo").read_text(errors="replace")
    except OSError:
        return False
    return _names(mounts, workspace)


def _names(mounts: str, workspace: Path) -> bool:
    # The path is that within its file system, which may be mounted elsewhere than at the root.
    tail = "/" + "/".join(workspace.parts[-3:])
    lines = mounts.splitlines()
    return any(len(fields := line.split(" ", 5)) > 4 and fields[3].endswith(tail) for line in lines)


def _kill(process: int, workspace: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(process)
        try:
            # Looked at again, now that the number cannot come to mean another process.
            if _has_mounted(process, workspace):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
