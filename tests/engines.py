"""The files' engine as a sandbox runs it, in a process of this host: shipped, started by a shell, asked over pipes."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import Process

from server.checkpoints import Checkpoints, Limits, ObjectStore, PendingRestore, Restored, Snapshot
from server.files.engines import RemoteEngine
from server.files.remote import RemoteFiles
from server.sandboxes.base import AgentProcess
from tests.unit.checkpoints.workspaces import Desk

ROOM: Final = tempfile.TemporaryDirectory(prefix="rookery-programs-")
"""Where programs are shipped to once for all tests of a run; each desk has its own objects and indexes."""


class HereProcess:
    """An :class:`AgentProcess` on this host."""

    def __init__(self, process: Process, stderr: Path) -> None:
        self._process = process
        self._stderr = stderr
        self.received = 0
        """Bytes that it sent us."""

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send(data)

    async def read(self) -> bytes:
        assert self._process.stdout is not None
        try:
            data = await self._process.stdout.receive(65_536)
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return b""
        self.received += len(data)
        return data

    async def close_input(self) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.aclose()

    def stderr_tail(self) -> str:
        return self._stderr.read_text(errors="replace")[-16_384:]

    async def wait(self) -> int:
        return await self._process.wait()

    async def terminate(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        with anyio.CancelScope(shield=True):
            await self._process.aclose()


class Here:
    """Starts what a sandbox would start as root, as ourselves; counts it."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.processes: list[HereProcess] = []

    async def start_root(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> AgentProcess:
        stderr = self._scratch / f"stderr-{len(self.processes)}"
        with stderr.open("wb") as sink:
            process = await anyio.open_process(
                list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, env=dict(env or {}), cwd="/"
            )
        self.processes.append(HereProcess(process, stderr))
        return self.processes[-1]


class PackedCheckpoints(Checkpoints):
    """The engine of the host in front of shipped ones: what touches a tree is done by a process of its own."""

    def __init__(self, home: Path, limits: Limits | None = None) -> None:
        super().__init__(ObjectStore(home / "objects"), home / "index", limits)
        self._home = home
        self._sandboxes: dict[Path, Here] = {}
        self._engines: dict[Path, RemoteEngine] = {}

    def files(self, key: str, tree: Path, owner: int | None = None) -> RemoteFiles:
        if tree not in self._engines:
            room = self._home.parent / f"room-{len(self._engines)}"
            room.mkdir(exist_ok=True)
            (room / "programs").symlink_to(Path(ROOM.name))
            self._sandboxes[tree] = Here(room)
            self._engines[tree] = RemoteEngine(self._sandboxes[tree], str(tree), str(room))
        return RemoteFiles(self, key, self._sandboxes[tree], self._engines[tree], owner)

    def room(self, tree: Path) -> Path:
        """What is the engine's own in the sandbox that holds a tree."""
        self.files("any", tree)
        return self._home.parent / f"room-{list(self._engines).index(tree)}" / "files"

    def sandbox(self, tree: Path) -> Here:
        """The sandbox that holds a tree."""
        self.files("any", tree)
        return self._sandboxes[tree]

    def processes(self, tree: Path) -> list[HereProcess]:
        """All processes that were started for the sandbox that holds a tree."""
        return self._sandboxes[tree].processes

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()

    async def take(self, key: str, tree: Path, *, known_as: str | None = None) -> Snapshot:
        return await self.files(key, tree).take()

    async def restore(
        self,
        key: str,
        tree: Path,
        tree_hash: str,
        *,
        owner: int | None = None,
        known_as: str | None = None,
        on_present: Callable[[Snapshot], Awaitable[None]] | None = None,
    ) -> Restored:
        files = self.files(key, tree, owner)
        return await files.restore(tree_hash, known_as=known_as, on_present=on_present)

    async def materialise(
        self, tree_hash: str, empty_dir: Path, *, owner: int | None = None, key: str | None = None
    ) -> int:
        return await self.files(key or "fork", empty_dir, owner).materialise(tree_hash)

    async def pending(self, key: str) -> PendingRestore | None:
        for tree in list(self._engines):
            if (found := await self.files(key, tree).pending()) is not None:
                return found
        return None


@contextlib.asynccontextmanager
async def open_packed_desk(base: Path, limits: Limits | None = None) -> AsyncIterator[Desk]:
    """A desk whose trees lie, as it were, in sandboxes elsewhere."""
    tree = base / "workspace"
    tree.mkdir()
    engine = PackedCheckpoints(base / "home", limits)
    try:
        yield Desk(base / "home", tree, ObjectStore(base / "home" / "objects"), engine)
    finally:
        await engine.close()
