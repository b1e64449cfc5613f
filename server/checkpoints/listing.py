"""What is in one directory: names, and for each entry the numbers by which a change shows. The inner loop of a scan."""

from __future__ import annotations

import itertools
import operator
import os
import stat
from array import array
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

Row = tuple[int, int, int, int, int]
"""``st_ctime_ns``, inode, size, mode, device."""

DIRECTORY_ROW: Final[Row] = (0, 0, 0, stat.S_IFDIR, 0)
"""Of every directory: what is in it shows in its own listing, and its mode is compared by itself."""

UNKNOWN_ROW: Final[Row] = (0, 0, 0, 0, 0)
"""Of an entry that has to be looked at again the next time. Matches nothing that is there."""

NUMBERS: Final = len(DIRECTORY_ROW)

row_of: Final[Callable[[os.stat_result], Row]] = operator.attrgetter(
    "st_ctime_ns", "st_ino", "st_size", "st_mode", "st_dev"
)

_IFMT: Final = 0o170000
_IFDIR: Final = stat.S_IFDIR
_MASK: Final = (1 << 64) - 1


class Listing(NamedTuple):
    """A directory as read."""

    names: list[str]
    rows: list[Row]
    directories: list[tuple[str, int, int]]
    """Of each sub-directory: name, mode, device."""


class TooManyError(Exception):
    """A directory holds more entries than are wanted."""


def read_listing(fd: int, most: int) -> Listing:
    """Read the directory ``fd``. Nothing in it is opened.

    Raises:
        TooManyError: it holds more than ``most`` entries; nothing was looked at but their names.
        OSError: the disk.
    """
    with os.scandir(fd) as found:
        items = list(itertools.islice(found, most + 1))
    if len(items) > most:
        raise TooManyError
    names = [item.name for item in items]
    try:
        rows = [row_of(item.stat(follow_symlinks=False)) for item in items]
    except (FileNotFoundError, PermissionError):
        names, rows = _one_by_one(items)
    directories: list[tuple[str, int, int]] = []
    for at in [at for at, row in enumerate(rows) if row[3] & _IFMT == _IFDIR]:
        directories.append((names[at], stat.S_IMODE(rows[at][3]), rows[at][4]))
        rows[at] = DIRECTORY_ROW
    return Listing(names, rows, directories)


def _one_by_one(items: Iterable[os.DirEntry[str]]) -> tuple[list[str], list[Row]]:
    """As the quick way, but leaves out what has gone meanwhile."""
    names: list[str] = []
    rows: list[Row] = []
    for item in items:
        try:
            row = row_of(item.stat(follow_symlinks=False))
        except FileNotFoundError:
            continue
        except PermissionError:
            row = UNKNOWN_ROW
        names.append(item.name)
        rows.append(row)
    return names, rows


def pack_names(names: Iterable[str]) -> bytes:
    return os.fsencode("\0".join(names))


def unpack_names(data: bytes) -> list[bytes]:
    return data.split(b"\0") if data else []


def pack_rows(rows: Iterable[Row]) -> bytes:
    try:
        return array("Q", itertools.chain.from_iterable(rows)).tobytes()
    except OverflowError:
        # A time before 1970, by a wrong clock.
        return array("Q", [number & _MASK for number in itertools.chain.from_iterable(rows)]).tobytes()


def unpack_rows(data: bytes) -> list[Row]:
    numbers = iter(array("Q", data))
    return list(zip(numbers, numbers, numbers, numbers, numbers, strict=True))
