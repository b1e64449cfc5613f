"""Programs of ours that run inside a sandbox: packed from this very package when they are needed.

What is shipped is the source of modules that use the standard library only, with empty packages round them, so that
nothing else of ours is imported there. A program is known by the hash of all that is in it: an old sandbox gets the
new one beside the old when the server was updated.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import AgentProcess

ROOM: Final = "/var/lib/rookery"
"""Ours inside a sandbox; only root can enter it."""

NOT_HERE: Final = 44
"""Exit status of the launcher when the program has to be shipped first."""

_WHEN: Final = (1980, 1, 1, 0, 0, 0)
"""Of all files in an archive, so that equal programs are equal bytes."""

_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_START: Final = f'test -d "$1" || exit {NOT_HERE}; {_PATH}; export PATH; cd / && exec python3 -I "$@"'

_TAKE: Final = (
    f'set -e; {_PATH}; export PATH; umask 077; mkdir -p -- "$2"; new="$1.$$"; '
    'trap \'rm -rf -- "$new" "$new.zip"\' EXIT; '
    'cat > "$new.zip"; python3 -I -m zipfile -e "$new.zip" "$new"; mv -T -- "$new" "$1" || test -d "$1"'
)


@runtime_checkable
class RootSandbox(Protocol):
    """A sandbox in which commands can be run as root."""

    async def start_root(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> AgentProcess:
        """Start a command as root, outside of the agent's reach, with binary-clean standard streams."""
        ...


@dataclass(frozen=True)
class Program:
    """A program to be shipped.

    Args:
        name: for its directory in the sandbox.
        modules: all modules of ours that it needs, by their full names.
        main: the module whose function ``main`` is called.
    """

    name: str
    modules: tuple[str, ...]
    main: str

    @cached_property
    def archive(self) -> bytes:
        """A zip of the modules: the same bytes for the same program."""
        sources = {f"{name.replace('.', '/')}.py": _source(name) for name in self.modules}
        for path in list(sources):
            for parent in list(Path(path).parents)[:-1]:
                sources.setdefault(f"{parent}/__init__.py", b"")
        sources["__main__.py"] = f"from {self.main} import main\n\nmain()\n".encode()
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(sources):
                archive.writestr(zipfile.ZipInfo(path, _WHEN), sources[path], zipfile.ZIP_DEFLATED)
        return target.getvalue()

    def directory(self, room: str = ROOM) -> str:
        """Where it lies inside a sandbox."""
        return f"{room}/programs/{self.name}-{hashlib.sha256(self.archive).hexdigest()[:16]}"

    async def start(self, sandbox: RootSandbox, arguments: Sequence[str], room: str = ROOM) -> AgentProcess:
        """Start it, where it is there already: else the process ends at once with :data:`NOT_HERE`."""
        return await sandbox.start_root(["/bin/sh", "-c", _START, "sh", self.directory(room), *arguments])

    async def ensure(self, sandbox: RootSandbox, room: str = ROOM) -> None:
        """Ship it unless it is there.

        Raises:
            RookeryError: as :meth:`ship`.
        """
        process = await sandbox.start_root(["/bin/sh", "-c", 'test -d "$1"', "sh", self.directory(room)])
        try:
            status = await process.wait()
        finally:
            await process.terminate()
        if status != 0:
            await self.ship(sandbox, room)

    async def ship(self, sandbox: RootSandbox, room: str = ROOM) -> None:
        """Bring it into a sandbox, whole or not at all.

        Raises:
            RookeryError: ``sandbox_unavailable``: it cannot be kept or unpacked there; ``sandbox_lost``.
        """
        process = await sandbox.start_root(["/bin/sh", "-c", _TAKE, "sh", self.directory(room), f"{room}/programs"])
        try:
            await process.write(self.archive)
            await process.close_input()
            status = await process.wait()
        finally:
            await process.terminate()
        if status != 0:
            raise RookeryError(
                ErrorCode.SANDBOX_UNAVAILABLE,
                "The sandbox takes no program of ours: its template needs python3 (3.11 or newer) and room on disk.",
                detail=f"status {status}: {process.stderr_tail()[-500:]}",
            )


def _source(name: str) -> bytes:
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None, name
    return Path(found.origin).read_bytes()
