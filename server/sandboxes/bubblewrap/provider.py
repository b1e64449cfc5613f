"""The bubblewrap provider: makes sandboxes on this machine and finds them again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import Capabilities, Check, SandboxSpec
from server.sandboxes.bubblewrap import directories
from server.sandboxes.bubblewrap.identity import choose_identity
from server.sandboxes.bubblewrap.machine import Machine, lost, unavailable
from server.sandboxes.bubblewrap.sandbox import BubblewrapSandbox

KIND: Final = "bubblewrap"


class BubblewrapProvider:
    """A :class:`~server.sandboxes.base.SandboxProvider` for this Linux machine.

    A sandbox's directories lie in ``home/sandboxes/<session id>`` (:mod:`.directories`). Its processes die with the
    server.

    Args:
        home: ``ROOKERY_HOME``.
        cli: the Claude Code CLI on this host, one executable file.
    """

    name = KIND
    capabilities = Capabilities(host_workspace=True)

    def __init__(self, home: Path, cli: Path) -> None:
        self._home = home
        self._cli = cli
        self._machine: Machine | None = None
        self._preparing = anyio.Lock()

    async def probe(self) -> list[Check]:
        """Say whether sandboxes can be made here, and what to do where not. Never raises.

        The last check makes a real sandbox and runs the CLI in it; it is left out when an earlier one failed.
        """
        # Asked for by `rookery doctor` and after failures only.
        from server.sandboxes.bubblewrap.probe import probe

        return await probe(self, self._cli)

    async def create(self, spec: SandboxSpec) -> BubblewrapSandbox:
        """Make a new, empty sandbox.

        Raises:
            RookeryError: ``sandbox_unavailable``; ``invalid_argument`` for a malformed session id. Nothing is left
                behind then.
        """
        _check(spec)
        machine = await self._prepared()
        try:
            identity = await anyio.to_thread.run_sync(_make, machine, spec)
        except OSError as error:
            raise unavailable(
                "The directories of the sandbox could not be made. Look at the disk of ROOKERY_HOME.", error
            ) from error
        return BubblewrapSandbox(machine, spec, identity)

    async def attach(self, reference: Mapping[str, Any], spec: SandboxSpec) -> BubblewrapSandbox:
        """Find a sandbox again by its stored reference. After a restart of the server none of its processes live.

        Raises:
            RookeryError: ``sandbox_lost`` when it is gone, or belongs to a uid that this server cannot become;
                ``sandbox_unavailable``.
        """
        _check(spec)
        uid = reference.get("uid")
        if reference.get("kind") != KIND or reference.get("id") != spec.session_id or not isinstance(uid, int):
            raise lost("the reference belongs to another sandbox")
        machine = await self._prepared()
        if uid != os.geteuid() and (machine.identities is None or uid not in machine.identities):
            raise lost(f"uid {uid} is out of reach for this server")
        found = await anyio.to_thread.run_sync(directories.owner_of, machine.sandboxes, spec.session_id)
        if found != uid:
            raise lost(f"its workspace belongs to {found}, not to {uid}")
        return BubblewrapSandbox(machine, spec, None if uid == os.geteuid() else uid, inherited=True)

    async def owned(self) -> list[Mapping[str, Any]]:
        """References of all sandboxes of this home. Also removes what dead servers left half-made or half-removed.

        Raises:
            RookeryError: ``sandbox_unavailable``.
        """
        machine = await self._prepared()
        try:
            return await anyio.to_thread.run_sync(_look_around, machine)
        except OSError as error:
            raise unavailable("The sandboxes cannot be listed. Look at the disk of ROOKERY_HOME.", error) from error

    async def _prepared(self) -> Machine:
        """What all sandboxes share; found out at the first use.

        Raises:
            RookeryError: ``sandbox_unavailable``.
        """
        async with self._preparing:
            if self._machine is not None:
                return self._machine
            machine = await anyio.to_thread.run_sync(Machine.prepare, self._home, self._cli)
            self._machine = machine
            return machine


def _check(spec: SandboxSpec) -> None:
    if not directories.SESSION_ID.fullmatch(spec.session_id):
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, "The session id has characters that no session id has.")


def _make(machine: Machine, spec: SandboxSpec) -> int | None:
    """Make the directories; the uid chosen for the sandbox, None when it is the server's own."""
    identity = None
    if machine.identities is not None:
        taken = {owner for _, owner in directories.present(machine.sandboxes)}
        identity = choose_identity(machine.identities, taken)
    directories.make(machine.sandboxes, spec.session_id, identity, spec.labels.get("server", ""))
    return identity


def _look_around(machine: Machine) -> list[Mapping[str, Any]]:
    machine.groups.sweep()
    directories.sweep(machine.sandboxes)
    return [
        {"kind": KIND, "id": name, "uid": uid, "server": directories.maker_of(machine.sandboxes, name)}
        for name, uid in directories.present(machine.sandboxes)
    ]
