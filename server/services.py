"""What sessions are made of: the shared parts of one server process, built once by the composition root."""

from __future__ import annotations

from dataclasses import dataclass

from policies import Policy, PolicyError, load_policy
from server.checkpoints import Checkpoints
from server.clock import Clock
from server.errors import ErrorCode, RookeryError
from server.egress import EgressProxy
from server.gateway import Gateway
from server.models import SessionRecord
from server.sandboxes.base import Limits, SandboxProvider, SandboxSpec
from server.settings import Settings
from server.store import Store


@dataclass(frozen=True)
class Services:
    """Handed to the registry and every session actor. Owns nothing: the composition root does."""

    settings: Settings
    store: Store
    gateway: Gateway
    egress: EgressProxy
    provider: SandboxProvider
    checkpoints: Checkpoints
    clock: Clock
    server_id: str
    """This process, in leases and commands."""

    def policy(self, name: str | None) -> Policy:
        """A policy by its name; the default one without.

        Raises:
            RookeryError: ``invalid_argument``, naming the policies that there are or the fault in the file.
        """
        try:
            return load_policy(name or self.settings.policy, self.settings.policy_dir)
        except PolicyError as error:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"policy: {error.message}", detail=str(error)) from error

    def sandbox_spec(self, session: SessionRecord) -> SandboxSpec:
        """What the session's sandbox is, or would be, made for."""
        return SandboxSpec(
            session_id=session.id,
            gateway_socket=self.gateway.socket,
            limits=self.limits,
            labels={"principal": session.principal, "server": self.server_id},
        )

    @property
    def limits(self) -> Limits:
        """Bounds of a new sandbox."""
        chosen = self.settings
        return Limits(memory_mb=chosen.memory_mb, processes=chosen.processes, cpus=chosen.cpus, disk_mb=chosen.disk_mb)
