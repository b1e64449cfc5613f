"""Who a sandbox is on the host: an unprivileged user of its own when the server is root, else the server's user.

The numbers lie in 1,900,000,000 … 2,099,999,999, in the range that systemd's table of uids lists as unused
(1,879,048,192 … 2,147,483,647): no account, no container manager and no sub-uid allocation takes from there. Where
the server's own user namespace does not map that range (root in a container), the upper half of its largest mapped
range serves.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Final

_FIRST: Final = 1_900_000_000
_COUNT: Final = 200_000_000
_SMALLEST_USEFUL: Final = 10_000
"""A namespace that maps fewer ids than this (often one: root is a user in disguise) gives none away."""


def _mapped_ranges(file: Path) -> list[range]:
    """The ids that exist in our user namespace, from ``/proc/self/uid_map`` (inside, outside, count)."""
    ranges = []
    for line in file.read_text().splitlines():
        inside, _, count = (int(word) for word in line.split())
        ranges.append(range(inside, inside + count))
    return ranges


def identity_range(maps: tuple[Path, Path] = (Path("/proc/self/uid_map"), Path("/proc/self/gid_map"))) -> range | None:
    """The ids that sandboxes may have here, or None when they can only have the server's own.

    Raises:
        OSError: the maps cannot be read.
    """
    if os.geteuid() != 0:
        return None
    wanted = range(_FIRST, _FIRST + _COUNT)
    users, groups = (_mapped_ranges(file) for file in maps)
    if all(any(wanted[0] in part and wanted[-1] in part for part in ranges) for ranges in (users, groups)):
        return wanted
    largest = max(users, key=len, default=range(0))
    upper = range(largest.start + len(largest) // 2, largest.stop - len(largest) // 16)
    if len(upper) < _SMALLEST_USEFUL or not any(upper[0] in part and upper[-1] in part for part in groups):
        return None
    return upper


def choose_identity(allowed: range, taken: Collection[int]) -> int:
    """A uid for a new sandbox, random and unlike those ``taken``; it serves as gid too."""
    while True:
        candidate = allowed.start + secrets.randbelow(len(allowed))
        if candidate not in taken:
            return candidate
