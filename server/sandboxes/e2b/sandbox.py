"""One sandbox in E2B's cloud."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.abc import TaskGroup

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import CONFIG_DIR, WORKSPACE, CommandResult, Outlet, SandboxSpec
from server.sandboxes.bubblewrap.seccomp import filter_program
from server.sandboxes.e2b.cloud import Cloud
from server.sandboxes.e2b.config_files import checked, tar_stream
from server.sandboxes.e2b.doors import Doors
from server.sandboxes.e2b.hold import Hold
from server.sandboxes.e2b.layout import AGENT_ENVIRONMENT, AGENT_UID, ROOT_ENVIRONMENT, direct_environment
from server.sandboxes.e2b.options import E2BOptions, Traffic
from server.sandboxes.e2b.plan import Plan
from server.sandboxes.e2b.processes import RemoteAgent, RemoteProcess
from server.sandboxes.e2b.residence import Residence
from server.sandboxes.e2b.running import run_to_end
from server.sandboxes.remote_tar import pack_remote, unpack_remote

if TYPE_CHECKING:
    from e2b import AsyncSandbox

KIND: Final = "e2b"

CORE_BYTES: Final = 0
ERROR_KEPT: Final = 16 * 1024


class E2BSandbox:
    """A :class:`~server.sandboxes.base.Sandbox`. Made by the provider, one object for each sandbox.

    It holds the sandbox from the first use on, and lets E2B pause it when nothing needs it.

    Args:
        tasks: where its background work lives.
        fresh: the SDK's object of a sandbox that was just made, which has a place of the plan already.
    """

    def __init__(
        self,
        cloud: Cloud,
        plan: Plan,
        options: E2BOptions,
        tasks: TaskGroup,
        spec: SandboxSpec,
        sandbox_id: str,
        fresh: AsyncSandbox | None = None,
    ) -> None:
        self._options = options
        self._spec = spec
        self._id = sandbox_id
        self._doors = Doors(spec.gateway_socket)
        self._residence = Residence(
            cloud, plan, options, tasks, sandbox_id, self._doors.destinations, lambda: self._is_busy, fresh
        )
        self._processes: set[RemoteProcess] = set()
        self._roots: set[RemoteProcess] = set()
        self._agent: RemoteAgent | None = None

    @property
    def reference(self) -> Mapping[str, Any]:
        """What ``attach`` needs to find it again after a restart."""
        return {"kind": KIND, "id": self._spec.session_id, "sandbox": self._id, "uid": AGENT_UID}

    @property
    def workspace(self) -> None:
        """None: it is not on this host."""
        return

    @property
    def alive(self) -> bool:
        """Whether it was not removed by this object."""
        return not self._residence.gone

    @property
    def is_held(self) -> bool:
        """Whether it runs and is talked to at present."""
        return self._residence.is_held

    async def come_up(self) -> None:
        """Wait until its relay answers.

        Raises:
            RookeryError: ``sandbox_unavailable``, ``sandbox_lost``.
        """
        await self._residence.held()

    # --- processes --------------------------------------------------------------------------------------------

    async def start_agent(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        config_files: Mapping[str, bytes] | None = None,
        outlet: Outlet | None = None,
        keepsake: Any = None,
    ) -> RemoteAgent:
        """Start the agent; see :meth:`server.sandboxes.base.Sandbox.start_agent`. One that still runs is ended first.

        Args:
            keepsake: JSON that :meth:`resume_agent` gives to another host.

        Raises:
            RookeryError: ``sandbox_unavailable``, ``sandbox_lost``, ``invalid_argument``.
        """
        files = checked(config_files or {})
        self._doors.admit()
        hold = await self._residence.held()
        renewed = await hold.channel.open("renew")
        if await renewed.finish() is None:
            raise _unavailable(f"the configuration directory: {renewed.why}")
        if files:
            await self._write_config(files)
        if self._options.traffic is Traffic.DIRECT:
            env = direct_environment(env, self._options.model_host)
        request = await self._request(argv, env, keepsake=keepsake)
        stream = await hold.channel.open("agent", request, egress=outlet is not None)
        return await self._met(stream, outlet)

    async def resume_agent(self, *, position: int | None = None, outlet: Outlet | None = None) -> RemoteAgent | None:
        """The agent that another host started, if it is still there or its end is still known.

        Args:
            position: where its output goes on from; None: from the first that no host settled.

        Raises:
            RookeryError: ``sandbox_unavailable``, ``sandbox_lost``.
        """
        self._residence.spare()
        hold = await self._residence.held()
        stream = await hold.channel.open("resume", position=-1 if position is None else position)
        agent = RemoteAgent(stream)
        if not await agent.met():
            return None
        agent.told = await self._inputs(hold)
        agent.on_admit = self._doors.admit
        return self._attended(agent, outlet)

    async def _inputs(self, hold: Hold) -> bytes:
        told = RemoteProcess(await hold.channel.open("inputs"))
        whole = bytearray()
        while piece := await told.read():
            whole += piece
        return bytes(whole)

    async def _met(self, stream: Any, outlet: Outlet | None) -> RemoteAgent:
        agent = RemoteAgent(stream)
        await agent.met()
        return self._attended(agent, outlet)

    def _attended(self, agent: RemoteAgent, outlet: Outlet | None) -> RemoteAgent:
        close = self._doors.listen(outlet)

        def released(process: RemoteProcess) -> None:
            close()
            self._forget(process)

        agent.when_over(released)
        self._agent = agent
        self._processes.add(agent)
        return agent

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

        Of stdout the first ``max_output`` bytes are kept, of stderr the last.

        Raises:
            RookeryError: ``timeout`` (its processes are gone then), ``sandbox_unavailable``, ``sandbox_lost``,
                ``invalid_argument``.
        """
        close = self._doors.listen(outlet)
        try:
            process = await self._started(argv, env or {}, stderr_kept=max_output, egress=outlet is not None)
            return await run_to_end(process, stdin, timeout_s, max_output)
        finally:
            close()

    async def start_root(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> RemoteProcess:
        """Start a program of ours as root, in ``/``. It ends with this host's hold of the sandbox.

        Raises:
            RookeryError: ``sandbox_unavailable``, ``sandbox_lost``.
        """
        hold = await self._residence.held()
        request = {
            "argv": list(argv),
            "env": {**ROOT_ENVIRONMENT, **(env or {})},
            "cwd": "/",
            "root": True,
            "stderr": ERROR_KEPT,
        }
        process = RemoteProcess(await hold.channel.open("run", request), self._forget)
        self._roots.add(process)
        return process

    async def _started(
        self, argv: Sequence[str], env: Mapping[str, str], *, stderr_kept: int, egress: bool
    ) -> RemoteProcess:
        if egress:
            self._doors.admit()
        hold = await self._residence.held()
        request = await self._request(argv, env, stderr=stderr_kept)
        process = RemoteProcess(await hold.channel.open("run", request, egress=egress), self._forget)
        self._processes.add(process)
        return process

    async def _request(self, argv: Sequence[str], env: Mapping[str, str], **more: Any) -> dict[str, Any]:
        if any("\0" in word for word in (*argv, *env, *env.values())) or any("=" in name or not name for name in env):
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "A word of the command or a variable cannot be passed on.")
        hold = await self._residence.held()
        try:
            seccomp = filter_program(hold.channel.machine)
        except ValueError as error:
            raise _unavailable(str(error)) from error
        return {
            "argv": list(argv),
            "env": {**AGENT_ENVIRONMENT, **env},
            "cwd": WORKSPACE,
            "limits": {"NPROC": self._spec.limits.processes, "CORE": CORE_BYTES},
            "seccomp": seccomp.hex(),
            **more,
        }

    async def _write_config(self, files: Mapping[str, bytes]) -> None:
        process = await self._started(
            ["tar", "-x", "-f", "-", "-C", CONFIG_DIR], {}, stderr_kept=ERROR_KEPT, egress=False
        )
        try:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                for piece in tar_stream(files):
                    await process.write(piece)
            await process.close_input()
            if await process.wait() != 0:
                raise _unavailable(f"the configuration files: {process.stderr_tail()}")
        finally:
            await process.terminate()

    def _forget(self, process: RemoteProcess) -> None:
        self._processes.discard(process)
        self._roots.discard(process)
        if process is self._agent:
            self._agent = None
        self._residence.touch()

    # --- files ------------------------------------------------------------------------------------------------

    async def pack(self, path: str = ".") -> AsyncIterator[bytes]:
        """The workspace below ``path`` as a tar stream; see :meth:`server.sandboxes.base.Sandbox.pack`."""
        return pack_remote(self, path, self._disk_bytes)

    async def unpack(self, stream: AsyncIterator[bytes]) -> None:
        """Write a tar stream into the workspace; see :meth:`server.sandboxes.base.Sandbox.unpack`."""
        await unpack_remote(self, stream, owner=AGENT_UID, limit=self._disk_bytes)

    @property
    def _disk_bytes(self) -> int:
        return self._spec.limits.disk_mb << 20

    # --- its life ---------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End all its processes and keep its files; E2B pauses it soon after. Bounded, idempotent.

        One that is paused already is not woken: what is frozen in it is ended at its next start.
        """
        await self._residence.stop()

    async def destroy(self) -> None:
        """End it, with its files. Bounded, idempotent.

        Raises:
            RookeryError: ``sandbox_unavailable`` when E2B did not do so; the janitor tries again.
        """
        await self._residence.destroy()

    async def rest(self) -> None:
        """Let go of it and have it paused, unless something runs in it. Bounded; failures are logged."""
        await self._residence.rest()

    @property
    def _is_busy(self) -> bool:
        return bool(self._processes) or any(process.owes_answer for process in self._roots)


def _unavailable(detail: str) -> RookeryError:
    return RookeryError(
        ErrorCode.SANDBOX_UNAVAILABLE,
        "The agent could not be started in its sandbox. `rookery doctor` says what the template lacks.",
        detail=detail,
    )
