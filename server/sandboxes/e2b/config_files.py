"""The agent's configuration files as a tar stream that its own user unpacks."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from server.errors import ErrorCode, RookeryError

_BLOCK: Final = 512
_PIECE: Final = 1 << 20


def checked(files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """The files, if all their paths stay where they belong.

    Raises:
        RookeryError: ``invalid_argument``.
    """
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "A configuration file would lie outside of its directory.")
    return files


def tar_stream(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """The archive, piece by piece; ``tar`` makes the directories that it needs."""
    for name, data in files.items():
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), 0o600
        yield entry.tobuf(tarfile.PAX_FORMAT)
        for start in range(0, len(data), _PIECE):
            yield data[start : start + _PIECE]
        yield bytes(-len(data) % _BLOCK)
    yield bytes(2 * _BLOCK)
