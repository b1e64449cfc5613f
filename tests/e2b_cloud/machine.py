"""One sandbox's machine: bubblewrap round a file tree, with the guest inside, and the wire to it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio

from tests.e2b_cloud import guest
from tests.e2b_cloud.trees import OVERLAID
from tests.e2b_cloud.users import UserNamespace

KEPT_CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "SYS_PTRACE", "SYS_CHROOT", "SYS_NICE", "NET_BIND_SERVICE",
)  # fmt: skip
"""Of root in a sandbox. Without SYS_ADMIN, for it could lay bare what is read-only of this machine."""

BOOT_S: Final = 60
GUEST_INSIDE: Final = "/run/double/guest.py"


class GuestError(Exception):
    """The guest refused: a Connect code in its lower-case spelling, and a text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class MachineGoneError(Exception):
    """The sandbox's machine is not running."""


def arguments(tree: Path, namespace: UserNamespace, mounts: Mapping[str, Path], control: int) -> list[str]:
    """The command that boots a sandbox."""
    command = ["bwrap", "--userns", str(namespace.descriptor), "--uid", "0", "--gid", "0"]
    command += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--hostname", "e2b"]
    command += ["--die-with-parent", "--new-session", "--clearenv", "--bind", str(tree), "/"]
    for path in OVERLAID:
        command += ["--ro-bind-try", path, path]
    for inside, outside in mounts.items():
        command += ["--ro-bind", str(outside), inside]
    command += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/dev/shm"]
    command += ["--ro-bind", str(Path(guest.__file__)), GUEST_INSIDE, "--cap-drop", "ALL"]
    for name in KEPT_CAPABILITIES:
        command += ["--cap-add", f"CAP_{name}"]
    return [*command, "--", "python3", "-I", "-S", GUEST_INSIDE, str(control)]


class Machine:
    """A running machine. Made by :meth:`boot`."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_ended: Callable[[int, int], None] = lambda pid, status: None
        """Told of every process that ended: its pid, its exit code or minus the signal."""
        self.gone = False
        asyncio.get_running_loop().add_reader(control, self._readable)

    @classmethod
    async def boot(cls, tree: Path, namespace: UserNamespace, mounts: Mapping[str, Path]) -> Machine:
        """Boot a machine on a tree; returns when the guest answers."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = subprocess.Popen(
                arguments(tree, namespace, mounts, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno(), namespace.descriptor],
                cwd="/",
            )
        machine = cls(process, ours)
        try:
            with anyio.fail_after(BOOT_S):
                await machine._up
        except (MachineGoneError, TimeoutError):
            await machine.kill()
            assert process.stderr is not None
            raise RuntimeError(f"a sandbox did not boot: {process.stderr.read().decode(errors='replace')}") from None
        return machine

    def _readable(self) -> None:
        """Take all packets that came from the guest."""
        while True:
            try:
                received = guest.receive(self._control)
            except BlockingIOError:
                return
            except OSError:
                received = None
            if received is None:
                self._lost()
                return
            message, descriptors = received
            if "ended" in message:
                self.on_ended(message["ended"], message["status"])
            elif "up" in message:
                if not self._up.done():
                    self._up.set_result(None)
            else:
                future = self._waiting.pop(message["id"], None)
                if future is None or future.done():
                    for descriptor in descriptors:
                        os.close(descriptor)
                else:
                    future.set_result((message, descriptors))

    def _lost(self) -> None:
        """The guest is gone: so is all that waits for it."""
        if not self.gone:
            self.gone = True
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            waiting: list[asyncio.Future[Any]] = [self._up, *self._waiting.values()]
            for future in waiting:
                if not future.done():
                    future.set_exception(MachineGoneError())
                    future.exception()
            self._waiting.clear()

    async def ask(self, work: str, descriptors: Sequence[int] = (), **request: Any) -> tuple[dict[str, Any], list[int]]:
        """Have the guest do something.

        Raises:
            GuestError: it refused.
            MachineGoneError: the machine is gone.
        """
        if self.gone:
            raise MachineGoneError
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            while True:
                try:
                    guest.send(self._control, {"id": number, "work": work, **request}, descriptors)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.001)
                except OSError:
                    self._lost()
                    raise MachineGoneError from None
            message, carried = await future
        finally:
            self._waiting.pop(number, None)
        if "code" in message:
            raise GuestError(message["code"], message["message"])
        return message["ok"], carried

    async def freeze(self) -> None:
        """Stop all its processes."""
        await self.ask("signal_everything", signal=int(signal.SIGSTOP))

    async def thaw(self) -> None:
        """Let them go on."""
        await self.ask("signal_everything", signal=int(signal.SIGCONT))

    async def kill(self) -> None:
        """End the machine with all its processes."""
        self._lost()
        with suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.to_thread(self._process.wait)
