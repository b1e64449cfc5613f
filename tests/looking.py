"""Looking for secrets with root's eyes: in files and processes of a sandbox, whoever they belong to."""

from __future__ import annotations

from pathlib import Path


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
