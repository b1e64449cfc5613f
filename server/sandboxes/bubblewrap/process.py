"""One process tree inside a sandbox: its streams, its end.

The streams are socket pairs, not pipes: a process inside can open another's pipe through ``/proc`` and write into it,
but not a socket (DESIGN section 4). What is read is not buffered here beyond the kernel's own buffers, except the
last part of stderr, which is drained by the event loop all the time, so that a flood of it never stalls the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.to_thread
import structlog

from server.sandboxes.bubblewrap.disk import CHECK_INTERVAL_S, DiskWatch
from server.sandboxes.bubblewrap.stillness import Stillness

_log = structlog.get_logger(__name__)

READ_SIZE: Final = 64 * 1024
STDERR_KEPT: Final = 16 * 1024
_TERM_GRACE_S: Final = 3.0
_KILL_WAIT_S: Final = 5.0
_MONITOR_WAIT_S: Final = 1.0
_SHELL_SIGNAL_BASE: Final = 128
_LAST_SIGNAL: Final = 64


@dataclass(frozen=True)
class Streams:
    """The host's ends of the three standard streams, non-blocking."""

    stdin: socket.socket
    stdout: socket.socket
    stderr: socket.socket


@dataclass(frozen=True)
class InitProcess:
    """The first process of the sandbox's pid namespace, as the host sees it. When it dies, all in there die."""

    pid: int
    descriptor: int
    """A pidfd: readable once the process and with it the whole namespace is gone."""


class SandboxProcess:
    """An :class:`~server.sandboxes.base.AgentProcess` below bubblewrap. Made by :func:`.spawn.start`.

    Must be made, used and ended on one asyncio event loop.

    Args:
        monitor: bubblewrap's outer process, child of ours.
        monitor_descriptor: its pidfd. Owned by this object, as all descriptors given.
        released: called once, at the end of :meth:`terminate`.
        disk: ends the process when its directories grow beyond their limit.
        stderr_kept: how many bytes of the end of stderr are kept.
    """

    def __init__(
        self,
        monitor: subprocess.Popen[bytes],
        monitor_descriptor: int,
        init: InitProcess,
        streams: Streams,
        *,
        released: Callable[[SandboxProcess], None],
        disk: DiskWatch | None = None,
        stderr_kept: int = STDERR_KEPT,
    ) -> None:
        self._monitor = monitor
        self._monitor_descriptor = monitor_descriptor
        self._init = init
        self._stillness = Stillness(init.pid, init.descriptor)
        self._streams = streams
        self._released = released
        self._disk = disk
        self._disk_due = time.monotonic() + CHECK_INTERVAL_S
        self._loop = asyncio.get_running_loop()
        self._exited = anyio.Event()
        self._ending = anyio.Lock()
        self._writing = anyio.Lock(fast_acquire=True)
        self._closed = False
        self._input_closed = False
        self._stderr = bytearray()
        self._stderr_kept = stderr_kept
        self._stderr_dropped = False
        self._loop.add_reader(monitor_descriptor, self._on_exit)
        self._loop.add_reader(streams.stderr, self._on_stderr)

    @property
    def returncode(self) -> int | None:
        """Exit status once it ended (negative: killed by that signal), else None."""
        code = self._monitor.returncode
        if code is not None and _SHELL_SIGNAL_BASE < code <= _SHELL_SIGNAL_BASE + _LAST_SIGNAL:
            # bubblewrap tells a death by a signal the way shells do.
            return _SHELL_SIGNAL_BASE - code
        return code

    @property
    def exit_code(self) -> int | None:
        """Exit status as a shell tells it (128 and the signal's number, when one killed it), else None."""
        return self._monitor.returncode

    async def write(self, data: bytes) -> None:
        """Send to its stdin.

        Raises:
            anyio.BrokenResourceError, anyio.ClosedResourceError: it no longer reads.
        """
        async with self._writing:
            view = memoryview(data)
            while view:
                if self._input_closed:
                    raise anyio.ClosedResourceError
                try:
                    view = view[self._streams.stdin.send(view) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._streams.stdin)
                except OSError as error:
                    raise anyio.BrokenResourceError from error

    async def read(self) -> bytes:
        """The next chunk of its stdout, at most 64 KiB; empty at the end."""
        while not self._closed:
            await self._look_after_disk()
            # Nothing is awaited between taking the bytes and giving them, so a cancelled read loses none.
            try:
                return self._streams.stdout.recv(READ_SIZE)
            except BlockingIOError:
                with contextlib.suppress(anyio.ClosedResourceError):
                    await self._until_readable()
            except ConnectionError:
                return b""
        return b""

    async def close_input(self) -> None:
        """End its stdin."""
        if not self._input_closed:
            self._input_closed = True
            with contextlib.suppress(OSError):
                self._streams.stdin.shutdown(socket.SHUT_WR)

    def stderr_tail(self) -> str:
        """The last 16 KiB of its stderr, for the log only."""
        return self._stderr[-STDERR_KEPT:].decode(errors="replace")

    def stderr_end(self) -> tuple[bytes, bool]:
        """The end of its stderr as far as it is kept, and whether what came before was dropped."""
        return bytes(self._stderr), self._stderr_dropped

    def note(self, text: str) -> None:
        """Add a line of ours to its stderr, where whoever reads the log looks for the cause of its end."""
        self._remember_stderr(f"\nsandbox: {text}\n".encode())

    async def wait(self) -> int:
        """Wait until it ended; the exit status."""
        await self._exited.wait()
        code = self.returncode
        assert code is not None, "an ended process has a status"
        return code

    @property
    def held(self) -> bool:
        """Whether it is held still."""
        return self._stillness.held

    async def hold(self) -> bool:
        """Hold it still; see :meth:`server.sandboxes.base.StillProcess.hold`."""
        async with self._ending:
            if self._closed or not await anyio.to_thread.run_sync(self._stillness.hold):
                return False
            assert self._stillness.agent is not None
            self._loop.add_reader(self._stillness.agent, self.release)
            return True

    def release(self) -> None:
        """Let it go on."""
        if self._stillness.agent is not None:
            self._loop.remove_reader(self._stillness.agent)
        self._stillness.release()

    async def terminate(self) -> None:
        """End it with its whole process tree: TERM to the group, KILL after a grace, reap. Bounded, idempotent.

        One that is held still is killed at once: nothing of it runs once more.
        """
        with anyio.CancelScope(shield=True):
            async with self._ending:
                if not self._closed:
                    await self._end()

    async def _end(self) -> None:
        if not self._exited.is_set() and not self.held:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._init.pid, signal.SIGTERM)
            with anyio.move_on_after(_TERM_GRACE_S):
                await self._exited.wait()
        self.kill()
        with anyio.move_on_after(_KILL_WAIT_S) as scope:
            with anyio.move_on_after(_MONITOR_WAIT_S):
                await self._exited.wait()
            if not self._exited.is_set():
                self._monitor.kill()
            await self._exited.wait()
            # Readable means more than that it died: the kernel lets the first process of a namespace end last.
            await anyio.wait_readable(self._init.descriptor)
        if scope.cancelled_caught:
            _log.error("sandbox_processes_survive", init=self._init.pid, seconds=_KILL_WAIT_S)
        self._close()

    def kill(self) -> None:
        """Send SIGKILL to the whole namespace, and do not wait. bubblewrap then reaps it and ends too."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._init.descriptor, signal.SIGKILL)

    async def _until_readable(self) -> None:
        with anyio.move_on_after(CHECK_INTERVAL_S):
            await anyio.wait_readable(self._streams.stdout)

    async def _look_after_disk(self) -> None:
        """About once a second, from the reader, because that is who always comes by."""
        now = time.monotonic()
        if self._disk is None or now < self._disk_due or self._exited.is_set():
            return
        self._disk_due = now + CHECK_INTERVAL_S
        if await self._disk.exceeded():
            self.note("the workspace grew beyond its disk limit, so its processes were ended")
            self.kill()

    def _on_exit(self) -> None:
        if self._monitor.poll() is None:
            return
        self._loop.remove_reader(self._monitor_descriptor)
        self._exited.set()

    def _on_stderr(self) -> None:
        try:
            data = self._streams.stderr.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._streams.stderr)
        self._remember_stderr(data)

    def _remember_stderr(self, data: bytes) -> None:
        self._stderr += data
        if len(self._stderr) > self._stderr_kept:
            self._stderr_dropped = True
            del self._stderr[: len(self._stderr) - self._stderr_kept]

    def _close(self) -> None:
        self._closed = True
        self.release()
        with contextlib.suppress(ChildProcessError):
            # When bubblewrap ended first, somebody inherited the namespace's first process: we, if the server is the
            # first process of a container.
            os.waitid(os.P_PIDFD, self._init.descriptor, os.WEXITED | os.WNOHANG)
        self._input_closed = True
        self._loop.remove_reader(self._monitor_descriptor)
        self._loop.remove_reader(self._streams.stderr)
        # What it wrote last is still in the socket.
        self._drain_stderr()
        for stream in (self._streams.stdin, self._streams.stdout, self._streams.stderr):
            anyio.notify_closing(stream)
            stream.close()
        for descriptor in (self._monitor_descriptor, self._init.descriptor):
            os.close(descriptor)
        self._released(self)

    def _drain_stderr(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._streams.stderr.recv(READ_SIZE):
                self._remember_stderr(data)
