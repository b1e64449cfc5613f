"""Several users for the sandboxes of the double: one user namespace that maps a range of uids.

``root`` of a sandbox is the user that runs the double; all others come from a range that nobody owns (when run by
root), or from the subordinate uids of that user (``newuidmap``). Root of a sandbox has capabilities over that
namespace alone, and bubblewrap leaves it few.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FIRST_UNOWNED: Final = 100_001
ALL_UNOWNED: Final = 2**32 - 2 - FIRST_UNOWNED
"""How many ids root maps."""
COUNT: Final = 65_535
"""How many an ordinary user maps."""
CLONE_NEWUSER: Final = 0x1000_0000
LIBC: Final = ctypes.CDLL(None)


class NoUserRangeError(RuntimeError):
    """This machine gives us one uid only, so users of a sandbox could not be kept apart."""


def subordinate(file: Path) -> tuple[int, int] | None:
    """The range of the current user in ``/etc/subuid`` or ``/etc/subgid``."""
    names = {str(os.getuid()), pwd.getpwuid(os.getuid()).pw_name}
    if not file.exists():
        return None
    for line in file.read_text().splitlines():
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in names and int(count) >= COUNT:
            return int(first), COUNT
    return None


def available() -> bool:
    """Whether a range of users can be mapped on this machine."""
    if os.geteuid() == 0:
        return True
    ranges = [subordinate(Path(file)) for file in ("/etc/subuid", "/etc/subgid")]
    return shutil.which("newuidmap") is not None and shutil.which("newgidmap") is not None and None not in ranges


@dataclass
class UserNamespace:
    """A user namespace, kept by a descriptor. All that the double makes have the same map."""

    descriptor: int

    @classmethod
    def make(cls) -> UserNamespace:
        """Make one. Each sandbox has its own, for limits are counted in each apart.

        Raises:
            NoUserRangeError: only root, or a user with subordinate uids and ``newuidmap``, can.
        """
        if not available():
            raise NoUserRangeError("needs root, or `newuidmap` and a range of 65535 in /etc/subuid and /etc/subgid")
        reading, writing = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            # Nothing but system calls here: other threads may hold any lock.
            os.write(writing, b"y" if LIBC.unshare(CLONE_NEWUSER) == 0 else b"n")
            while True:
                signal.pause()
        try:
            if os.read(reading, 1) != b"y":
                raise NoUserRangeError("user namespaces are not allowed here")
            for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
                map_range(pid, kind, own)
            return cls(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reading)
            os.close(writing)

    def run(self, *command: str) -> None:
        """Run a program of this machine as root of the namespace: for file trees with files of several users."""
        if os.geteuid() == 0:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
            return
        place = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        entering = ["nsenter", f"--user={place}", "--setuid=0", "--setgid=0", "--"]
        subprocess.run([*entering, *command], check=True, stdin=subprocess.DEVNULL)

    def close(self) -> None:
        """Let it go; it lives on while a sandbox is in it."""
        os.close(self.descriptor)


def map_range(pid: int, kind: str, own: int) -> None:
    """Write a uid or gid map: 0 is us, all others are from a range."""
    if own == 0:
        Path(f"/proc/{pid}/{kind}_map").write_text(f"0 0 1\n1 {FIRST_UNOWNED} {ALL_UNOWNED}\n")
        return
    found = subordinate(Path(f"/etc/sub{kind}"))
    assert found is not None
    subprocess.run([f"new{kind}map", str(pid), "0", str(own), "1", "1", str(found[0]), str(COUNT)], check=True)


def chown_to(path: Path, number: int, namespace: UserNamespace) -> None:
    """Give a file of a tree to a user of the sandboxes."""
    if os.geteuid() == 0:
        outside = number and FIRST_UNOWNED + number - 1
        os.chown(path, outside, outside, follow_symlinks=False)
    else:
        namespace.run("chown", "--no-dereference", f"{number}:{number}", str(path))
