"""The directories of a sandbox on the host: made, renewed, found, removed.

They lie in ``<home>/sandboxes/<session id>/``: ``workspace`` and ``config``, which belong to the uid the sandbox runs
under. All above them belongs to the server, so nothing inside can rename or replace them. Names with a leading dot
are on their way in (``.new-<pid of the server>-…``) or out (``.trash-…``).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from server.sandboxes.tree import OPEN_DIRECTORY, remove_tree, write_files

WORKSPACE: Final = "workspace"
CONFIG: Final = "config"
MAKER: Final = "made-by"
"""Names the server that made the sandbox, where no sandbox can reach it."""

_MAX_MAKER: Final = 256

SESSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_DRAFT: Final = re.compile(r"\.new-(\d+)-[0-9a-f]{16}")
_TRASH: Final = ".trash-"
_PROBE: Final = re.compile(r"probe-(\d+)-[0-9a-f]{16}")
_REMOVE_S: Final = 120.0
_SWEEP_S: Final = 20.0
_REMOVE_CONFIG_S: Final = 2.0


def make(sandboxes: Path, session_id: str, owner: int | None, maker: str = "") -> None:
    """Make the directories of a new sandbox, aside first, so that a crash leaves nothing that looks whole.

    Args:
        owner: uid and gid of what the agent may write to; None: ourselves.
        maker: the server that makes it, if that is to be told.

    Raises:
        OSError: they exist already (``FileExistsError``), or cannot be made. Nothing is left then.
    """
    final = sandboxes / session_id
    if final.exists():
        raise FileExistsError("there is a sandbox of this session already")
    draft = sandboxes / f".new-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        draft.mkdir(mode=0o700)
        (draft / MAKER).write_text(maker)
        for name in (WORKSPACE, CONFIG):
            path = draft / name
            path.mkdir(mode=0o700)
            if owner is not None:
                os.chown(path, owner, owner)
        draft.rename(final)
    except OSError:
        _discard(sandboxes, draft.name)
        raise


def renew_config(sandboxes: Path, session_id: str, files: Mapping[str, bytes], owner: int | None) -> None:
    """Give a sandbox an empty configuration directory with these files, whatever the agent left in the old one.

    Raises:
        FileNotFoundError: there is no such sandbox.
        ValueError: a file name leaves the directory.
        OSError: the disk refused.
    """
    with contextlib.ExitStack() as stack:

        def opened(name: str | Path, within: int | None = None) -> int:
            descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=within)
            stack.callback(os.close, descriptor)
            return descriptor

        top = opened(sandboxes)
        own = opened(session_id, top)
        trash = _trash_name()
        with contextlib.suppress(FileNotFoundError):
            os.rename(CONFIG, trash, src_dir_fd=own, dst_dir_fd=top)
        os.mkdir(CONFIG, 0o700, dir_fd=own)
        config = opened(CONFIG, own)
        if owner is not None:
            os.fchown(config, owner, owner)
        write_files(config, files, owner)
        remove_tree(top, trash, deadline=time.monotonic() + _REMOVE_CONFIG_S)


def remove(sandboxes: Path, session_id: str) -> bool:
    """Remove the directories of a sandbox; at once out of sight, and in fact as far as two minutes suffice.

    Returns:
        False when a part is left for :func:`sweep`.

    Raises:
        OSError: the disk refused.
    """
    try:
        top = os.open(sandboxes, OPEN_DIRECTORY)
    except FileNotFoundError:
        return True
    try:
        trash = _trash_name()
        try:
            os.rename(session_id, trash, src_dir_fd=top, dst_dir_fd=top)
        except FileNotFoundError:
            return True
        return remove_tree(top, trash, deadline=time.monotonic() + _REMOVE_S)
    finally:
        os.close(top)


def owner_of(sandboxes: Path, session_id: str) -> int | None:
    """The uid that a sandbox runs under: who owns its workspace. None: there is no such sandbox."""
    try:
        return (sandboxes / session_id / WORKSPACE).lstat().st_uid
    except OSError:
        return None


def maker_of(sandboxes: Path, session_id: str) -> str:
    """The server that made a sandbox; empty when nothing tells."""
    try:
        with (sandboxes / session_id / MAKER).open("rb") as file:
            return file.read(_MAX_MAKER).decode()
    except (OSError, ValueError):
        return ""


def probe_id() -> str:
    """A session id for a trial: :func:`present` does not tell of it while this process lives."""
    return f"probe-{os.getpid()}-{secrets.token_hex(8)}"


def present(sandboxes: Path) -> Iterator[tuple[str, int]]:
    """Session id and uid of every sandbox, without those that a living process tries out.

    Raises:
        OSError: the directory cannot be read.
    """
    for path in sandboxes.iterdir():
        probe = _PROBE.fullmatch(path.name)
        if SESSION_ID.fullmatch(path.name) and not (probe is not None and _is_alive(probe[1])):
            owner = owner_of(sandboxes, path.name)
            if owner is not None:
                yield path.name, owner


def sweep(sandboxes: Path) -> None:
    """Remove what is on its way out, and what servers that are no more left half-made. Never raises."""
    with contextlib.suppress(OSError):
        for path in list(sandboxes.iterdir()):
            draft = _DRAFT.fullmatch(path.name)
            abandoned = draft is not None and not _is_alive(draft[1])
            if abandoned or path.name.startswith(_TRASH):
                _discard(sandboxes, path.name)


def _is_alive(process: str) -> bool:
    return Path("/proc", process).exists()


def _trash_name() -> str:
    return f"{_TRASH}{secrets.token_hex(8)}"


def _discard(sandboxes: Path, name: str) -> None:
    with contextlib.suppress(OSError):
        directory = os.open(sandboxes, OPEN_DIRECTORY)
        try:
            remove_tree(directory, name, deadline=time.monotonic() + _SWEEP_S)
        finally:
            os.close(directory)
