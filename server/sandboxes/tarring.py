"""Packing and unpacking a workspace inside a sandbox, as root: the program that is shipped for it.

``pack WORKSPACE PATH LIMIT`` writes a gzipped tar stream; ``unpack WORKSPACE OWNER LIMIT`` reads one. What they refuse
and what they write is what :mod:`server.sandboxes.archive` says, as for a workspace on the server's own disk. The
standard library only.
"""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from pathlib import Path
from typing import Final

from server.sandboxes import archive

REFUSED: Final = 40
"""Exit status: the archive or path is not taken; standard error says why."""
MISSING: Final = 41
"""Exit status: there is no such path."""
FAILED: Final = 42
"""Exit status: the disk refused; standard error says how."""

LEVEL: Final = 1
GZIP: Final = 16 + zlib.MAX_WBITS


def main() -> None:
    """Do what the arguments say, and exit with a status that tells how it went."""
    what, workspace, given, limit = sys.argv[1:5]
    os.umask(0o022)
    try:
        if what == "pack":
            _pack(Path(workspace), given, int(limit))
        else:
            _unpack(Path(workspace), int(given), int(limit))
    except archive.ArchiveRefusedError as error:
        _leave(REFUSED, str(error))
    except (gzip.BadGzipFile, EOFError, zlib.error):
        _leave(REFUSED, "not a readable tar stream")
    except (FileNotFoundError, NotADirectoryError):
        _leave(MISSING, "there is no such path")
    except OSError as error:
        _leave(FAILED, error.strerror or repr(error))


def _leave(status: int, why: str) -> None:
    sys.stderr.write(why)
    sys.exit(status)


def _pack(workspace: Path, path: str, limit: int) -> None:
    compressor = zlib.compressobj(LEVEL, wbits=GZIP)
    out = sys.stdout.buffer
    for chunk in archive.pack(workspace, path, limit):
        out.write(compressor.compress(chunk))
    out.write(compressor.flush())
    out.flush()


def _unpack(workspace: Path, owner: int, limit: int) -> None:
    root = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with gzip.open(sys.stdin.buffer, "rb") as stream:
            archive.unpack(root, stream, owner=owner, limit=limit)
        while sys.stdin.buffer.read(archive.CHUNK):
            # What pads the end of the archive, so that whoever sends it can send it all.
            pass
    finally:
        os.close(root)
