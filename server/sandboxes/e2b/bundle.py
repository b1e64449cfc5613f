"""The relay as one file to upload: a zip archive that Python runs as it is."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_PACKAGE: Final = "server/sandboxes/e2b/relay"
_BEGINNING: Final = (1980, 1, 1, 0, 0, 0)
"""The date of every entry, so that equal sources give equal archives."""


@dataclass(frozen=True)
class Bundle:
    """An archive and the name of its content."""

    data: bytes
    build: str
    """Hexadecimal SHA-256 of the sources, shortened: what a running relay says of itself."""


@cache
def relay_bundle() -> Bundle:
    """The relay's archive."""
    source = Path(__file__).parent / "relay"
    files = {path.name: path.read_bytes() for path in sorted(source.glob("*.py"))}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        parts = _PACKAGE.split("/")
        for depth in range(1, len(parts)):
            _add(archive, "/".join([*parts[:depth], "__init__.py"]), b"")
        for name, data in files.items():
            _add(archive, f"{_PACKAGE}/{name}", data)
        _add(archive, "__main__.py", files["__main__.py"])
    build = hashlib.sha256(b"".join(name.encode() + data for name, data in files.items())).hexdigest()[:16]
    return Bundle(content.getvalue(), build)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _BEGINNING), data, zipfile.ZIP_DEFLATED)
