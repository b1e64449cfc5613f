"""What idle sessions cost: processes and memory of a server with 500 hibernated sessions, against the same with none.

Target (issue 3): no process at all.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Final

import anyio

from benchmarks.restart import seed

SESSIONS: Final = 500


def descendants() -> int:
    """How many processes there are below this one."""
    parents: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below, found = {os.getpid()}, 0
    while new := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= new
        found += len(new)
    return found


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def measure(home: Path, count: int) -> None:
    """Open a house with so many idle sessions and print what it costs."""
    from rookery.application import open_registry
    from server.settings import Settings, UpstreamKind

    await seed(home, count)
    async with open_registry(Settings(home=home, upstream=UpstreamKind.SCRIPTED, warm=0)):
        print(
            f"{count:>5,} idle sessions: {descendants()} processes, {resident_mib():.0f} MiB in the server", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        for count in (0, given.sessions):
            anyio.run(measure, Path(name) / str(count), count)


if __name__ == "__main__":
    main()
