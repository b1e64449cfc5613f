"""One sandbox: its machine, its processes, its life time."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.e2b_cloud.egress import Opening
from tests.e2b_cloud.machine import GuestError, Machine, MachineGoneError
from tests.e2b_cloud.processes import RETAINED_S, Cut, Process

GONE: Final = "The connection to sandbox {} ended before the stream completed"
PIPE_BYTES: Final = 64 * 1024


@dataclass
class Settings:
    """What a sandbox was created with and keeps."""

    template: str
    metadata: dict[str, str]
    variables: dict[str, str]
    network: dict[str, Any]
    auto_pause: bool = False
    auto_pause_memory: bool = True
    auto_resume: bool = False
    allow_internet_access: bool | None = None
    default_user: str = "user"
    default_cwd: str = ""
    start_command: str = ""
    mounts: Mapping[str, Path] = field(default_factory=dict)


class Sandbox:
    """A sandbox of the double, running or paused."""

    def __init__(self, identity: str, owner: str, token: str, tree: Path, settings: Settings) -> None:
        self.identity = identity
        self.owner = owner
        self.token = token
        self.tree = tree
        self.settings = settings
        self.machine: Machine | None = None
        self.opening: Opening | None = None
        """Its way to the network, if its settings allow any."""
        self.paused = False
        self.pause_mode = "full"
        self.processes: dict[int, Process] = {}
        self.started = time.time()
        self.awake_since = self.started
        """When it was made or resumed last."""
        self.timeout_s = 300.0
        self.ends = self.started
        self.timer: asyncio.TimerHandle | None = None
        self._early: dict[int, int] = {}
        """Ends that were told before the start was answered here."""

    @property
    def running(self) -> bool:
        """Whether envd would answer."""
        return self.machine is not None and not self.machine.gone and not self.paused

    def take(self, machine: Machine) -> None:
        """Live on this machine from now on."""
        self.machine = machine
        machine.on_ended = self._ended

    def _ended(self, pid: int, status: int) -> None:
        process = self.processes.get(pid)
        if process is None:
            self._early[pid] = status
            return
        process.exited(status)
        asyncio.get_running_loop().call_later(RETAINED_S, self._forget, pid, process)

    def _forget(self, pid: int, process: Process) -> None:
        if self.processes.get(pid) is process:
            del self.processes[pid]

    async def start(
        self,
        argv: list[str],
        *,
        user: str | None,
        cwd: str,
        variables: Mapping[str, str],
        stdin: bool,
        tag: str | None = None,
    ) -> Process:
        """Start a command; its first subscriber must be added before this is awaited to see all: see ``Process.run``.

        Raises:
            GuestError: it cannot be started.
            MachineGoneError: the sandbox is gone.
        """
        if self.machine is None:
            raise MachineGoneError
        inside: list[int] = []
        ours: list[int] = []
        process: Process | None = None
        try:
            if stdin:
                reading, writing = os.pipe2(os.O_CLOEXEC)
                inside.append(reading)
                ours.append(writing)
            else:
                inside.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            for _ in range(2):
                reading, writing = os.pipe2(os.O_CLOEXEC)
                inside.append(writing)
                ours.append(reading)
            for one in ours:
                os.set_blocking(one, False)
            config: dict[str, object] = {"cmd": argv[0], "args": argv[1:], "envs": dict(variables), "cwd": cwd}
            process = Process(config, tag, ours[0] if stdin else None, ours[-2:])
            answer, _ = await self.machine.ask(
                "spawn",
                inside,
                argv=argv,
                user=user or self.settings.default_user,
                cwd=cwd or self.settings.default_cwd,
                env={**self.settings.variables, **variables},
            )
        except BaseException:
            for one in ours:
                os.close(one)
            raise
        finally:
            for one in inside:
                os.close(one)
        process.pid = answer["pid"]
        self.processes[process.pid] = process
        if process.pid in self._early:
            self._ended(process.pid, self._early.pop(process.pid))
        return process

    def find(self, *, pid: int | None = None, tag: str | None = None) -> Process:
        """A process that runs, or ended not long ago.

        Raises:
            GuestError: there is none.
        """
        for process in self.processes.values():
            if process.pid == pid or (tag is not None and process.tag == tag):
                return process
        what = f"process with pid {pid}" if tag is None else f"process with tag {tag}"
        raise GuestError("not_found", f"{what} not found")

    async def signal(self, process: Process, number: int) -> None:
        """Signal one process alone."""
        if process.end is not None or self.machine is None:
            raise GuestError("not_found", f"process with pid {process.pid} not found")
        process.killed = process.killed or number in (signal.SIGKILL, signal.SIGTERM)
        await self.machine.ask("signal", pid=process.pid, signal=number)

    def cut_streams(self, cut: Cut) -> None:
        """End all open streams."""
        for process in list(self.processes.values()):
            process.cut(cut)

    async def end_machine(self) -> None:
        """End the machine and all that hangs on it."""
        machine, self.machine = self.machine, None
        opening, self.opening = self.opening, None
        self.cut_streams(Cut("unavailable", GONE.format(self.identity)))
        for process in self.processes.values():
            process.abandon()
        self.processes.clear()
        if machine is not None:
            with suppress(MachineGoneError):
                await machine.kill()
        if opening is not None:
            await opening.close()
