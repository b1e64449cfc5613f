"""Starting bubblewrap: descriptors, the launcher's plan, and the wait until the sandbox stands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from server.sandboxes.base import EGRESS_PORT, Outlet
from server.sandboxes.bubblewrap.arguments import (
    INFO_DESCRIPTOR,
    OPTIONS_DESCRIPTOR,
    READY_DESCRIPTOR,
    SECCOMP_DESCRIPTOR,
    STDIN_DESCRIPTOR,
    STDOUT_DESCRIPTOR,
    WAIT_DESCRIPTOR,
)
from server.sandboxes.bubblewrap.disk import DiskWatch
from server.sandboxes.bubblewrap.limits import NICENESS, OOM_SCORE
from server.sandboxes.bubblewrap.process import STDERR_KEPT, InitProcess, SandboxProcess, Streams

STAGE: Final = "/tmp"  # noqa: S108 - exists everywhere and is covered in a private mount namespace
_START_TIMEOUT_S: Final = 30.0
_ABANDON_S: Final = 0.2
_LAUNCHER: Final = Path(__file__).with_name("launcher.py")
_LISTENER: Final = Path(__file__).with_name("listener.py")
_LISTENER_TIMEOUT_S: Final = 20.0


class LaunchError(Exception):
    """The sandbox did not come to stand. The text is for the log only."""


@dataclass(frozen=True)
class Launch:
    """All that one start needs."""

    program: str
    """bubblewrap, absolute."""
    options: Sequence[str]
    command: Sequence[str]
    seccomp: bytes
    limits: Mapping[int, int]
    groups: Sequence[str] = ()
    identity: int | None = None
    """The uid and gid to become; None: stay who the server is."""
    binds: Mapping[str, str] = field(default_factory=dict)
    """Name in the stage → source on the host; only with ``identity``."""

    def plan(self, descriptors: Mapping[int, int]) -> bytes:
        """The launcher's plan. ``descriptors``: number in this process → number that bubblewrap knows."""
        words = ["parent", str(os.getpid())]
        for number, wanted in descriptors.items():
            words += ["descriptor", str(number), str(wanted)]
        for group in self.groups:
            words += ["group", group]
        words += ["oom", str(OOM_SCORE), "nice", str(NICENESS)]
        for limit, value in self.limits.items():
            words += ["limit", str(limit), str(value)]
        if self.identity is not None:
            words += ["stage", STAGE]
            for name, source in self.binds.items():
                words += ["bind", source, name]
            words += ["identity", str(self.identity), str(self.identity)]
        words += ["run", self.program, "--args", str(OPTIONS_DESCRIPTOR), "--", *self.command]
        return os.fsencode("\0".join(words))


def _in_memory(name: str, content: bytes) -> int:
    descriptor = os.memfd_create(name)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


async def start(
    launch: Launch,
    *,
    released: Callable[[SandboxProcess], None],
    disk: DiskWatch | None = None,
    stderr_kept: int = STDERR_KEPT,
    outlet: Outlet | None = None,
) -> SandboxProcess:
    """Start a sandbox and wait until its command is about to run.

    Must be called on the event loop's own thread: the sandbox dies with the thread that started it.

    Args:
        launch: what to start; with an outlet, one whose options have it wait.
        released, disk, stderr_kept: see :class:`~.process.SandboxProcess`.
        outlet: gets a listening socket inside before the command runs, and is told when the process is released.

    Raises:
        LaunchError: it did not come to stand; nothing of it is left.
    """
    with contextlib.ExitStack() as kept, contextlib.ExitStack() as temporary:
        shut: list[Callable[[], None]] = []

        async def let_out(init: int) -> None:
            assert outlet is not None, "called with an outlet only"
            try:
                listener = await anyio.to_thread.run_sync(_listen_within, init, launch.identity)
            except subprocess.SubprocessError as error:
                raise LaunchError(f"nothing could listen inside: {error}") from error
            shut.append(outlet.serve(listener))
            kept.callback(shut[0])

        def release(process: SandboxProcess) -> None:
            for close in shut:
                close()
            released(process)

        try:
            spawned = _spawn(launch, kept, temporary, waits=outlet is not None)
        except OSError as error:
            raise LaunchError(f"the launcher could not be started: {error}") from error
        try:
            init_pid = await _until_standing(spawned, None if outlet is None else let_out)
            init = InitProcess(init_pid, os.pidfd_open(init_pid))
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                code = await _abandon(spawned)
            if isinstance(error, LaunchError | OSError | ValueError):
                raise LaunchError(f"{error}; status {code}: {_said(spawned.streams.stderr)}") from error
            raise
        kept.pop_all()
    return SandboxProcess(
        spawned.monitor,
        spawned.descriptor,
        init,
        spawned.streams,
        released=release,
        disk=disk,
        stderr_kept=stderr_kept,
    )


@dataclass(frozen=True)
class _Spawned:
    """A launcher that runs, and our ends of what it shares with us."""

    monitor: subprocess.Popen[bytes]
    descriptor: int
    """Its pidfd."""
    streams: Streams
    ready: int
    info: int
    go: int | None
    """What it waits for, if it does."""


def _spawn(launch: Launch, kept: contextlib.ExitStack, temporary: contextlib.ExitStack, *, waits: bool) -> _Spawned:
    """Start the launcher. ``kept`` closes what a running sandbox goes on to need, ``temporary`` the rest."""
    with contextlib.ExitStack() as theirs:

        def own(descriptor: int, stack: contextlib.ExitStack) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        host, inside = [], []
        for _ in range(3):
            mine, other = socket.socketpair()
            host.append(kept.enter_context(mine))
            inside.append(theirs.enter_context(other))
            mine.setblocking(False)
        stdin, stdout, stderr = host
        # Each pair serves one direction: what the sandbox writes into its stdin goes nowhere.
        stdin.shutdown(socket.SHUT_RD)
        for stream in (stdout, stderr):
            stream.shutdown(socket.SHUT_WR)
        ready, ready_inside = os.pipe()
        info, info_inside = os.pipe()
        own(ready, temporary)
        own(info, temporary)
        options = os.fsencode("".join(f"{word}\0" for word in launch.options))
        descriptors = {
            own(_in_memory("options", options), theirs): OPTIONS_DESCRIPTOR,
            own(_in_memory("seccomp", launch.seccomp), theirs): SECCOMP_DESCRIPTOR,
            own(info_inside, theirs): INFO_DESCRIPTOR,
            own(ready_inside, theirs): READY_DESCRIPTOR,
            inside[0].fileno(): STDIN_DESCRIPTOR,
            inside[1].fileno(): STDOUT_DESCRIPTOR,
        }
        go = None
        if waits:
            wait_inside, go = os.pipe()
            own(go, temporary)
            descriptors[own(wait_inside, theirs)] = WAIT_DESCRIPTOR
        plan = own(_in_memory("plan", launch.plan(descriptors)), theirs)
        monitor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(plan)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=inside[2].fileno(),
            pass_fds=[plan, *descriptors],
            cwd="/",
            env={},
            start_new_session=True,
        )
        descriptor = own(os.pidfd_open(monitor.pid), kept)
    return _Spawned(monitor, descriptor, Streams(stdin, stdout, stderr), ready, info, go)


async def _until_standing(spawned: _Spawned, on_init: Callable[[int], Awaitable[None]] | None) -> int:
    """Wait for the starter's word; the host's process id of the namespace's first process.

    ``on_init`` is called with it while that process waits to be let go on.
    """
    with anyio.move_on_after(_START_TIMEOUT_S):
        init = await _init_pid(spawned.info)
        if on_init is not None and spawned.go is not None:
            await on_init(init)
            os.write(spawned.go, b".")
        await anyio.wait_readable(spawned.ready)
        if os.read(spawned.ready, 1) != b".":
            raise LaunchError("bubblewrap ended before the command ran")
        return init
    raise LaunchError(f"the sandbox did not stand after {_START_TIMEOUT_S} s")


async def _init_pid(info: int) -> int:
    document = b""
    while True:
        await anyio.wait_readable(info)
        piece = os.read(info, 4096)
        document += piece
        with contextlib.suppress(json.JSONDecodeError):
            return int(json.loads(document)["child-pid"])
        if not piece:
            raise LaunchError("bubblewrap ended before it told its process id")


def _listen_within(init: int, identity: int | None) -> socket.socket:
    """A listening socket inside the network namespace of a process. Blocks for some 30 ms; runs in a thread."""
    back, theirs = socket.socketpair()
    with back:
        with theirs:
            words = (init, -1 if identity is None else identity, EGRESS_PORT, theirs.fileno())
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(_LISTENER), *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env={},
                timeout=_LISTENER_TIMEOUT_S,
                check=False,
            )
        _, descriptors, _, _ = socket.recv_fds(back, 1, 1)
    if not descriptors:
        raise LaunchError(f"nothing could listen inside: {done.stderr[-500:].decode(errors='replace').strip()}")
    listener = socket.socket(fileno=descriptors[0])
    listener.setblocking(False)
    return listener


async def _abandon(spawned: _Spawned) -> int | None:
    """End a start that failed or is no longer wanted, with all that came of it so far."""
    with anyio.move_on_after(_ABANDON_S):
        # A launcher that failed ends by itself, and its own status says more than ours.
        await anyio.wait_readable(spawned.descriptor)
    if spawned.monitor.poll() is None:
        with contextlib.ExitStack() as stack, anyio.move_on_after(_START_TIMEOUT_S):
            try:
                children = await _children_of_stopped(spawned.monitor, stack)
                for child in children:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(child, signal.SIGKILL)
            finally:
                spawned.monitor.kill()
            for child in children:
                await anyio.wait_readable(child)
            await anyio.wait_readable(spawned.descriptor)
    return spawned.monitor.poll()


async def _children_of_stopped(monitor: subprocess.Popen[bytes], stack: contextlib.ExitStack) -> list[int]:
    """Stop bubblewrap, so that it makes no more children and reaps none; pidfds of those it has.

    They have to be ended by name, because the namespace's first process is for a moment not yet bound to the life of
    its parent.
    """
    monitor.send_signal(signal.SIGSTOP)
    with contextlib.suppress(OSError):
        while "\nState:\tT" not in _from_proc(monitor, "status"):
            if monitor.poll() is not None:
                return []
            await anyio.sleep(0.001)
        children = []
        for child in _from_proc(monitor, f"task/{monitor.pid}/children").split():
            children.append(os.pidfd_open(int(child)))
            stack.callback(os.close, children[-1])
        return children
    return []


def _from_proc(process: subprocess.Popen[bytes], name: str) -> str:
    return Path("/proc", str(process.pid), name).read_text()


def _said(stderr: socket.socket) -> str:
    with contextlib.suppress(OSError):
        return stderr.recv(4096).decode(errors="replace").strip()
    return ""
