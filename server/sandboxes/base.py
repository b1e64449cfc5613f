"""The seam to sandboxes: what a provider must do, whatever runs below it.

A sandbox is the isolated machine of one session. Its *directories* (workspace, configuration) outlive its
*processes*: ``stop`` ends the processes and keeps the files, ``destroy`` removes everything. An infrastructure
failure is raised as :class:`~server.errors.RookeryError` (``sandbox_unavailable``, ``sandbox_lost``); it is never
shown to a model as the output of a command.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

WORKSPACE: Final = "/workspace"
"""The agent's working directory, the same in every sandbox of every provider."""

CONFIG_DIR: Final = "/home/agent/.claude"
"""``CLAUDE_CONFIG_DIR`` inside every sandbox: written afresh on each start of an agent, never trusted."""

GATEWAY_SOCKET: Final = "/run/rookery/gateway.sock"
"""Where the model gateway listens, seen from inside the sandbox (``ANTHROPIC_UNIX_SOCKET``)."""

EGRESS_PORT: Final = 3128
"""TCP port of the sandbox's own loopback where its egress proxy answers, when it has one."""

CLI: Final = "/opt/rookery/claude"
"""The Claude Code CLI inside every sandbox, read-only."""


@dataclass(frozen=True)
class Capabilities:
    """What a provider can do beyond the minimum."""

    pause: bool = False
    """Processes survive ``stop``/``start`` of the host (memory snapshot)."""
    native_fork: bool = False
    """The provider itself can copy a sandbox."""
    survives_host: bool = False
    """The agent process lives on when our server dies, and ``attach`` finds it again."""
    lasts_s: int = 0
    """How long a sandbox runs on, and costs, when our server dies, in seconds."""
    host_workspace: bool = False
    """``Sandbox.workspace`` is a directory of this machine."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one sandbox. Memory and disk in MiB."""

    memory_mb: int = 2048
    processes: int = 256
    cpus: float = 2.0
    disk_mb: int = 4096


@dataclass(frozen=True)
class SandboxSpec:
    """What a new sandbox is made for."""

    session_id: str
    gateway_socket: Path
    """The gateway's socket on the host, offered inside at :data:`GATEWAY_SOCKET`: the only way out."""
    limits: Limits = field(default_factory=Limits)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One finding of a probe: for ``rookery doctor`` and for refusals."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class CommandResult:
    """What a finished command left. Output is bounded; ``truncated`` says that some was dropped."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


class AgentProcess(Protocol):
    """The agent's process with its standard streams. Reads are chunks, not lines; nothing here is trusted."""

    @property
    def returncode(self) -> int | None:
        """Exit status once it ended (negative: killed by that signal), else None."""
        ...

    async def write(self, data: bytes) -> None:
        """Send to its stdin.

        Raises:
            anyio.BrokenResourceError, anyio.ClosedResourceError: it no longer reads.
        """
        ...

    async def read(self) -> bytes:
        """The next chunk of its stdout, at most 64 KiB; empty at the end."""
        ...

    async def close_input(self) -> None:
        """End its stdin."""
        ...

    def stderr_tail(self) -> str:
        """The last 16 KiB of its stderr, for the log only."""
        ...

    async def wait(self) -> int:
        """Wait until it ended; the exit status."""
        ...

    async def terminate(self) -> None:
        """End it with its whole process tree: TERM to the group, KILL after a grace, reap. Bounded, idempotent."""
        ...


@runtime_checkable
class StillProcess(AgentProcess, Protocol):
    """An agent's process that can be stopped and then goes on as if nothing had been."""

    @property
    def held(self) -> bool:
        """Whether it is held still."""
        ...

    async def hold(self) -> bool:
        """Stop it, if it is certain that no other process is in its sandbox; whether it is.

        Until :meth:`release` nothing in the sandbox changes, unless the caller runs something else in it. It may be
        ended as it is.
        """
        ...

    def release(self) -> None:
        """Let it go on. Idempotent."""
        ...


class LastingProcess(AgentProcess, Protocol):
    """An agent's process that lives on when its host dies (``Capabilities.survives_host``).

    Its output has positions, counted in bytes from its start: what was not settled is given to the next host again.
    """

    @property
    def position(self) -> int:
        """Position after what was read last."""
        ...

    @property
    def keepsake(self) -> Any:
        """What it was started with for its next host: JSON."""
        ...

    @property
    def told(self) -> bytes:
        """What the last host wrote to it since it settled something; empty for the host that started it."""
        ...

    def admit(self) -> None:
        """Let its connections to the gateway and to its outlet through, which wait since its last host died."""
        ...

    def settle(self, position: int) -> None:
        """All output up to a position, and all input up to now, is done with: no other host needs it."""
        ...


class Outlet(Protocol):
    """What answers at :data:`EGRESS_PORT` of a sandbox: the only way out of it beside the gateway's socket."""

    def serve(self, listener: socket.socket) -> Callable[[], None]:
        """Take the connections of a listening socket, which the outlet owns from now on.

        Returns:
            Ends that: closes the socket and all connections that came from it. May be called more than once.
        """
        ...


class Sandbox(Protocol):
    """One sandbox. All its methods raise ``sandbox_lost`` when the machine is gone."""

    @property
    def reference(self) -> Mapping[str, Any]:
        """What ``attach`` needs to find it again after a restart: JSON, kept in the store, holds no secret."""
        ...

    @property
    def workspace(self) -> Path | None:
        """The workspace's directory on this host, if the provider has it there (``host_workspace``)."""
        ...

    async def start_agent(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        config_files: Mapping[str, bytes] | None = None,
        outlet: Outlet | None = None,
    ) -> AgentProcess:
        """Start ``argv`` with exactly ``env`` as the agent, in :data:`WORKSPACE`, with a clean :data:`CONFIG_DIR`.

        Args:
            argv: the command; the first word is :data:`CLI` or a program of the sandbox.
            env: the whole environment beside what the provider itself sets (PATH, HOME, USER, LANG).
            config_files: relative path → content, written into the clean configuration directory before the start.
            outlet: answers at :data:`EGRESS_PORT` from the start to the end of the process; None: nothing does.

        Raises:
            RookeryError: ``sandbox_unavailable`` when it could not be started.
        """
        ...

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
        """Run a command to its end in the workspace, under the same isolation as the agent.

        ``outlet`` answers at :data:`EGRESS_PORT` while it runs.

        Raises:
            RookeryError: ``timeout`` (its processes are gone then), ``sandbox_unavailable``.
        """
        ...

    async def pack(self, path: str = ".") -> AsyncIterator[bytes]:
        """The workspace below ``path`` as a tar stream (never follows a link)."""
        ...

    async def unpack(self, stream: AsyncIterator[bytes]) -> None:
        """Write a tar stream into the workspace; entries that would leave it are refused (``invalid_argument``)."""
        ...

    async def stop(self) -> None:
        """End all its processes and keep its files. Bounded, idempotent."""
        ...

    async def destroy(self) -> None:
        """End all its processes and remove its files. Bounded, idempotent."""
        ...


@runtime_checkable
class LastingSandbox(Protocol):
    """What a :class:`Sandbox` has besides, where the provider ``survives_host``."""

    async def start_agent(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        config_files: Mapping[str, bytes] | None = None,
        outlet: Outlet | None = None,
        keepsake: Any = None,
    ) -> LastingProcess:
        """As :meth:`Sandbox.start_agent`; ``keepsake`` is for another host, should this one die."""
        ...

    async def resume_agent(self, *, position: int | None = None, outlet: Outlet | None = None) -> LastingProcess | None:
        """Take over the agent that another host started; None when there is none any more.

        Args:
            position: where its output goes on from; None: from the first that no host settled.
            outlet: answers at :data:`EGRESS_PORT` from now on.

        Raises:
            RookeryError: ``sandbox_lost``; ``sandbox_unavailable``: it may be there, and cannot be reached now.
        """
        ...


class SandboxProvider(Protocol):
    """Makes sandboxes of one kind. Every provider passes ``tests/conformance/sandbox_suite.py``."""

    name: str
    capabilities: Capabilities

    async def probe(self) -> list[Check]:
        """Say whether sandboxes can be made here, and what to do where not. Never raises."""
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make a new, empty sandbox.

        Raises:
            RookeryError: ``sandbox_unavailable``. Nothing is left behind then.
        """
        ...

    async def attach(self, reference: Mapping[str, Any], spec: SandboxSpec) -> Sandbox:
        """Find a sandbox again by its stored reference.

        Raises:
            RookeryError: ``sandbox_lost`` when it is gone.
        """
        ...

    async def owned(self) -> list[Mapping[str, Any]]:
        """References of all sandboxes of this home or account, for the janitor.

        Each also says under ``server`` which server's label it was made with (empty: not known), which no agent can
        change.
        """
        ...
