"""Decisions on their way into the store, in a file: they outlive a server that is killed before it wrote them there.

Each server appends to a file of its own, one ``write`` for each decision before the decision is acted upon. What is
written is the kernel's and survives the death of the process, ``SIGKILL`` included, but not that of the machine: it is
not forced to the disk, as the store's own last transactions are not. Whoever finds the file of a dead server writes
its rows into the store, where a row that is there already is left as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from server.errors import ErrorCode, RookeryError
from server.models import DecisionRecord

log = structlog.get_logger(__name__)

SUFFIX: Final = ".jsonl"

FRESH: Final = ".fresh"
"""Of a file that is about to replace the other."""

UNREADABLE: Final = ".unreadable"
"""Of a file that holds what this version cannot read, and that is kept for a person to look at."""

LONGEST: Final = 4 * 1024 * 1024
"""Bytes beyond which a file is written afresh, should there never be a moment in which no decision waits."""


class AuditJournal:
    """The file of this server, and those that dead servers left beside it.

    Args:
        directory: where the files of all servers of this home are; made when it is needed.
        server_id: this server.
    """

    def __init__(self, directory: Path, server_id: str) -> None:
        self._directory = directory
        self._path = directory / f"{server_id}{SUFFIX}"
        self._descriptor: int | None = None
        self._size = 0

    def append(self, entry: DecisionRecord) -> None:
        """Write a decision down.

        Raises:
            RookeryError: ``storage_unavailable``; nothing of it is in the file then.
        """
        line = _line(entry)
        try:
            if self._descriptor is None:
                self._descriptor = self._opened()
            if os.write(self._descriptor, line) < len(line):
                os.ftruncate(self._descriptor, self._size)
                raise OSError("the disk is full")
        except OSError as error:
            raise RookeryError(
                ErrorCode.STORAGE_UNAVAILABLE,
                "The audit cannot be written, so nothing is allowed. Free some space for ROOKERY_HOME, and check that "
                "it can be written.",
                detail=str(error),
                retryable=True,
            ) from error
        self._size += len(line)

    def trim(self, waiting: Sequence[DecisionRecord]) -> None:
        """Forget what is in the store by now. Never raises: a row that stays is not written twice.

        Args:
            waiting: the decisions that are not.
        """
        if self._descriptor is None or (waiting and self._size <= LONGEST):
            return
        try:
            if waiting:
                self._write_afresh(waiting)
            else:
                os.ftruncate(self._descriptor, 0)
                self._size = 0
        except OSError as error:
            log.warning("audit journal could not be trimmed", path=str(self._path), error=str(error))

    def close(self, waiting: Sequence[DecisionRecord]) -> None:
        """Remove the file, unless decisions still wait for the store: the next server of this home finds it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            if not waiting:
                self._path.unlink(missing_ok=True)

    def left_behind(self, lives: Callable[[str], bool]) -> list[Path]:
        """The files of dead servers of this home.

        Args:
            lives: whether a server is alive.
        """
        found = sorted(self._directory.glob(f"*{SUFFIX}"))
        return [path for path in found if path != self._path and not lives(path.stem)]

    def _opened(self) -> int:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(descriptor).st_size
        return descriptor

    def _write_afresh(self, waiting: Sequence[DecisionRecord]) -> None:
        fresh = self._path.with_suffix(FRESH)
        fresh.touch(mode=0o600)
        fresh.write_bytes(b"".join(map(_line, waiting)))
        fresh.replace(self._path)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._descriptor = self._opened()


def read_rows(path: Path) -> tuple[list[DecisionRecord], bool]:
    """What the file of a dead server holds, and whether this version could read all of it.

    A last line without an end was being written when the server died: nobody acted upon that decision.

    Raises:
        OSError: it cannot be read.
    """
    rows, whole = [], True
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            rows.append(DecisionRecord.model_validate(json.loads(line)))
        except (ValueError, ValidationError):
            whole = False
    return rows, whole


def retire(path: Path, *, whole: bool) -> None:
    """Remove the file of a dead server, whose rows are in the store; one that was not read whole is kept aside.

    Raises:
        OSError: it cannot be removed, or another server has done so.
    """
    path.with_suffix(FRESH).unlink(missing_ok=True)
    if whole:
        path.unlink()
    else:
        path.rename(path.with_suffix(UNREADABLE))


def _line(entry: DecisionRecord) -> bytes:
    try:
        return entry.model_dump_json().encode() + b"\n"
    except PydanticSerializationError:
        # Lone surrogates, which a command may hold; the json module, which is slower, can write them.
        return json.dumps(entry.model_dump(mode="json")).encode() + b"\n"
