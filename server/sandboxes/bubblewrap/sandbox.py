"""One sandbox of this machine: the processes that are started in it, and its files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog

from server.errors import ErrorCode, RookeryError
from server.sandboxes import archive
from server.sandboxes.base import CommandResult, Outlet, SandboxSpec
from server.sandboxes.bubblewrap import directories
from server.sandboxes.bubblewrap.cgroups import ControlGroup
from server.sandboxes.bubblewrap.disk import DiskWatch, measure_all
from server.sandboxes.bubblewrap.machine import Machine, Shown, lost, refused, storage, unavailable
from server.sandboxes.bubblewrap.process import STDERR_KEPT, SandboxProcess
from server.sandboxes.bubblewrap.spawn import Launch, LaunchError, start
from server.sandboxes.bubblewrap.survivors import end_survivors
from server.sandboxes.feed import Feed
from server.sandboxes.tree import OPEN_DIRECTORY

_log = structlog.get_logger(__name__)


class BubblewrapSandbox:
    """A :class:`~server.sandboxes.base.Sandbox`. Made by the provider.

    What is bounded, and by what: processes by a resource limit and the control group; memory and CPU by the control
    group only, so not at all where the machine offers none; single files and files in memory by the kernel; the
    workspace as a whole by a watch that needs about a second (:mod:`.disk`).

    Args:
        identity: the host uid and gid it runs under; None: the server's own.
        inherited: it was made earlier, perhaps by a server that died and left processes in it.
    """

    def __init__(self, machine: Machine, spec: SandboxSpec, identity: int | None, *, inherited: bool = False) -> None:
        self._machine = machine
        self._spec = spec
        self._identity = identity
        self._inherited = inherited
        self._directory = machine.sandboxes / spec.session_id
        self._processes: set[SandboxProcess] = set()
        self._agent: SandboxProcess | None = None
        self._starting = anyio.Lock()
        self._group: ControlGroup | None = None
        self._memory_kills = 0

    @property
    def reference(self) -> Mapping[str, Any]:
        """What ``attach`` needs to find it again after a restart."""
        return {"kind": "bubblewrap", "id": self._spec.session_id, "uid": self._uid}

    @property
    def workspace(self) -> Path:
        """The workspace on this host. All in it belongs to the ``uid`` of ``reference``."""
        return self._directory / directories.WORKSPACE

    @property
    def control_group(self) -> ControlGroup | None:
        """The control group of its processes, while there are any; without members where the machine offers none."""
        return self._group

    async def start_agent(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        config_files: Mapping[str, bytes] | None = None,
        outlet: Outlet | None = None,
    ) -> SandboxProcess:
        """Start the agent; see :meth:`server.sandboxes.base.Sandbox.start_agent`. One that still runs is ended first.

        Raises:
            RookeryError: ``sandbox_unavailable``; ``sandbox_lost`` when its directories are gone;
                ``invalid_argument`` when a word, a variable or a file name is refused; ``storage_unavailable``.
        """
        if self._agent is not None:
            await self._agent.terminate()
        try:
            await anyio.to_thread.run_sync(
                directories.renew_config,
                self._machine.sandboxes,
                self._spec.session_id,
                config_files or {},
                self._identity,
            )
        except FileNotFoundError as error:
            raise lost(error) from error
        except ValueError as error:
            raise refused(error) from error
        except OSError as error:
            raise storage(error) from error
        self._agent = await self._start(argv, env, config=self._config, outlet=outlet)
        return self._agent

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
        max_output: int = 1 << 20,
        outlet: Outlet | None = None,
    ) -> CommandResult:
        """Run a command to its end; see :meth:`server.sandboxes.base.Sandbox.run`.

        It sees the same workspace as the agent, and no configuration directory. Of stdout the first ``max_output``
        bytes are kept, of stderr the last. The exit status is as a shell tells it: 128 and more for a signal.

        Raises:
            RookeryError: ``timeout`` (its processes are gone then), ``sandbox_unavailable``, ``sandbox_lost``,
                ``invalid_argument``.
        """
        process = await self._start(argv, env or {}, config=None, outlet=outlet, stderr_kept=max_output)
        output = bytearray()
        dropped = False
        try:
            with anyio.move_on_after(timeout_s) as deadline:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_send, process, stdin)
                    while piece := await process.read():
                        room = max_output - len(output)
                        output += piece[:room]
                        dropped = dropped or len(piece) > room
                    await process.wait()
                    tasks.cancel_scope.cancel()
        finally:
            await process.terminate()
        if deadline.cancelled_caught:
            raise RookeryError(ErrorCode.TIMEOUT, f"The command did not end within {timeout_s:g} s, so it was ended.")
        stderr, stderr_dropped = process.stderr_end()
        code = process.exit_code
        assert code is not None, "it was waited for"
        return CommandResult(code, bytes(output), stderr, truncated=dropped or stderr_dropped)

    async def pack(self, path: str = ".") -> AsyncIterator[bytes]:
        """The workspace below ``path`` as a tar stream; see :mod:`.archive`.

        Raises (also while it is read):
            RookeryError: ``sandbox_lost``; ``invalid_argument`` when the path leaves the workspace, does not exist, or
                the content is larger than the sandbox may hold.
        """
        if not await anyio.to_thread.run_sync(self.workspace.is_dir):
            raise lost("its workspace is gone")
        return self._packed(path)

    async def unpack(self, stream: AsyncIterator[bytes]) -> None:
        """Write a tar stream into the workspace; see :mod:`.archive`. What came before a refused entry stays.

        Raises:
            RookeryError: ``invalid_argument`` when the stream is refused, ``storage_unavailable`` when the disk is
                full, ``sandbox_lost``.
            Exception: what the stream itself raised.
        """
        feed = Feed(stream)
        try:
            await anyio.to_thread.run_sync(self._unpack, feed)
        except archive.ArchiveRefusedError as error:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"The archive was refused: {error}.") from error
        except OSError as error:
            if error is feed.failure:
                raise
            raise storage(error) from error

    async def usage(self) -> int:
        """Bytes on disk of its directories, counted up to a little more than ``limits.disk_mb``.

        Raises:
            RookeryError: ``sandbox_lost``.
        """
        try:
            return await anyio.to_thread.run_sync(measure_all, [self.workspace, self._config], self._disk_bytes)
        except OSError as error:
            raise lost(error) from error

    async def stop(self) -> None:
        """End all its processes and keep its files. Bounded, idempotent.

        Called before anything was started here, it also ends what a server that died left running.
        """
        with anyio.CancelScope(shield=True):
            if self._inherited and await anyio.to_thread.run_sync(end_survivors, self.workspace):
                _log.warning("sandbox_survivors_ended", session_id=self._spec.session_id)
            self._inherited = False
            async with self._starting, anyio.create_task_group() as tasks:
                for process in list(self._processes):
                    tasks.start_soon(process.terminate)
            self._drop_group()

    async def destroy(self) -> None:
        """End all its processes and remove its files. Bounded, idempotent.

        Removing a very large tree may be left to a later ``owned``; the sandbox is gone at once all the same.

        Raises:
            RookeryError: ``storage_unavailable`` when the disk refused; its processes are gone then.
        """
        with anyio.CancelScope(shield=True):
            await self.stop()
            try:
                whole = await anyio.to_thread.run_sync(
                    directories.remove, self._machine.sandboxes, self._spec.session_id
                )
            except OSError as error:
                raise storage(error) from error
            if not whole:
                _log.warning("sandbox_removed_in_part", session_id=self._spec.session_id)

    @property
    def _uid(self) -> int:
        return os.geteuid() if self._identity is None else self._identity

    @property
    def _config(self) -> Path:
        return self._directory / directories.CONFIG

    @property
    def _disk_bytes(self) -> int:
        return self._spec.limits.disk_mb << 20

    async def _start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        config: Path | None,
        outlet: Outlet | None,
        stderr_kept: int = STDERR_KEPT,
    ) -> SandboxProcess:
        async with self._starting:
            try:
                launch = await anyio.to_thread.run_sync(self._prepare, argv, env, config, outlet is not None)
                process = await start(
                    launch,
                    released=self._forget,
                    outlet=outlet,
                    disk=DiskWatch([self.workspace, self._config], self._disk_bytes),
                    stderr_kept=stderr_kept,
                )
            except BaseException as error:
                self._drop_group()
                if not isinstance(error, LaunchError):
                    raise
                _log.warning("sandbox_start_failed", session_id=self._spec.session_id, detail=str(error))
                raise unavailable(
                    "The sandbox could not be started. Run `rookery doctor` to see what is missing.", error
                ) from error
            self._processes.add(process)
            self._inherited = False
            return process

    def _prepare(self, argv: Sequence[str], env: Mapping[str, str], config: Path | None, listens: bool) -> Launch:
        """Check what the sandbox is made of, and put the start together. Blocks; runs in a thread."""
        for path in (self.workspace, self._config):
            try:
                status = path.lstat()
            except OSError as error:
                raise lost(error) from error
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != self._uid:
                raise lost(f"{path} is no directory of uid {self._uid}")
        try:
            if self._group is None:
                self._group = self._machine.groups.create(self._spec.limits)
        except OSError as error:
            raise unavailable("The limits of the sandbox could not be set.", error) from error
        return self._machine.launch(
            argv,
            env,
            Shown(self._spec.gateway_socket, self.workspace, config),
            self._spec.limits,
            identity=self._identity,
            groups=self._group.joins,
            listens=listens,
        )

    def _unpack(self, feed: Feed) -> None:
        try:
            root = os.open(self.workspace, OPEN_DIRECTORY)
        except OSError as error:
            raise lost(error) from error
        try:
            archive.unpack(root, feed, owner=self._identity, limit=self._disk_bytes)
        finally:
            os.close(root)

    async def _packed(self, path: str) -> AsyncIterator[bytes]:
        chunks = archive.pack(self.workspace, path, self._disk_bytes)
        try:
            while piece := await anyio.to_thread.run_sync(next, chunks, b""):
                yield piece
        except archive.ArchiveRefusedError as error:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"Nothing was packed: {error}.") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "There is no such path in the workspace.") from error
        except OSError as error:
            raise storage(error) from error
        finally:
            chunks.close()

    def _forget(self, process: SandboxProcess) -> None:
        kills = self._group.memory_kills() if self._group is not None else 0
        if kills > self._memory_kills:
            self._memory_kills = kills
            process.note(
                f"a process was ended because the memory limit of {self._spec.limits.memory_mb} MiB was reached"
            )
        self._processes.discard(process)
        if process is self._agent:
            self._agent = None
        if not self._starting.locked():
            self._drop_group()

    def _drop_group(self) -> None:
        """Remove the control group once there are no processes."""
        if self._group is None or self._processes:
            return
        group, self._group, self._memory_kills = self._group, None, 0
        # All members are gone with their namespace; killing is for what may have been left outside of it.
        if not group.remove():
            group.kill()
            if not group.remove():
                _log.warning("control_group_left", session_id=self._spec.session_id)


async def _send(process: SandboxProcess, data: bytes) -> None:
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await process.write(data)
    await process.close_input()
