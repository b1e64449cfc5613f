"""Looking for secrets with root's eyes: in files and processes of a sandbox, whoever they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from tests.e2b_cloud.handle import E2BCloud
from tests.house import PATIENCE_S


def holding(place: Path, needles: list[bytes]) -> list[str]:
    """Files below a directory in which one of these is."""
    found = []
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [str(path) for needle in needles if needle in content]
    return found


def processes_holding(identity: str, needles: list[bytes]) -> tuple[int, list[str]]:
    """How many processes the sandbox has, and which hold one of these in environment or arguments.

    Args:
        identity: a word that stands in the mounts of the sandbox's processes alone.
        needles: what is looked for.
    """
    count, found = 0, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if identity not in (process / "mountinfo").read_text():
                continue
            count += 1
            content = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        found += [str(process) for needle in needles if needle in content]
    return count, found


async def work_without(needles: list[bytes], cloud: E2BCloud) -> dict[str, Any]:
    """Look through the one sandbox of a cloud, whose agent is at work and has made the file ``started``.

    Returns:
        the sandbox; none of the needles is in its files and processes.
    """
    (found,) = cloud.sandboxes
    tree = Path(found["tree"])
    with anyio.fail_after(PATIENCE_S):
        while not (tree / "workspace" / "started").exists():
            await anyio.sleep(0.02)
    count, told = await anyio.to_thread.run_sync(processes_holding, found["sandboxID"], needles)
    assert count >= 5, "the relay, its wire, the agent and its tool were looked at"
    assert told == []
    assert (await anyio.to_thread.run_sync(holding, tree, needles)) == []
    return found
