"""What sessions are made of: the shared parts of one server process, built once by the composition root."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from policies import Policy
from server.audit.journal import AuditJournal
from server.audit.trail import AuditTrail
from server.checkpoints import Checkpoints
from server.clock import Clock
from server.delegation import Admissions, Delegate, Delegation
from server.egress import EgressProxy
from server.errors import ErrorCode, RookeryError
from server.files import HostFiles, RemoteEngines, RemoteFiles, WorkspaceFiles
from server.gateway import Gateway
from server.hooks import PreToolUse, UserHooks, load_hooks
from server.models import SessionRecord
from server.policy_book import PolicyBook
from server.sandboxes.base import Limits, Sandbox, SandboxProvider, SandboxSpec
from server.sandboxes.providers import Providers
from server.sandboxes.shipping import RootSandbox
from server.settings import Settings
from server.starts import Starts
from server.store import Store
from server.telemetry.metrics import NO_METRICS, Metrics


def _no_tools(_: Admissions) -> Delegation:
    raise RookeryError(ErrorCode.INTERNAL, "This server gives its agents no tools of its own.")


@dataclass(frozen=True)
class Services:
    """Handed to the registry and every session actor. Owns nothing: the composition root does."""

    settings: Settings
    store: Store
    gateway: Gateway
    egress: EgressProxy
    providers: Providers
    checkpoints: Checkpoints
    clock: Clock
    server_id: str
    """This process, in leases and commands."""
    metrics: Metrics = NO_METRICS
    delegate: Delegate = field(default=_no_tools)
    """Makes Rookery's own tools for an agent."""
    scratch: set[str] = field(default_factory=set)
    """Ids of sandboxes in use that no session will ever have; the janitor leaves them alone."""
    starts: Starts = field(default_factory=Starts)
    """Agents that come up now."""

    @cached_property
    def policies(self) -> PolicyBook:
        """The policies in force."""
        return PolicyBook(self.settings.policy_dir, self.settings.policy)

    @cached_property
    def audit(self) -> AuditTrail:
        """Where decisions are written down."""
        return AuditTrail(self.store, AuditJournal(self.settings.home / "audit", self.server_id))

    @cached_property
    def engines(self) -> RemoteEngines:
        """What looks after files in sandboxes that are elsewhere."""
        return RemoteEngines()

    @cached_property
    def hooks(self) -> UserHooks:
        """The user's hooks.

        Raises:
            RookeryError: ``invalid_argument``: one cannot be imported.
        """
        return load_hooks(self.settings.hooks, timeout_s=self.settings.hook_timeout_s)

    def check(self) -> None:
        """Refuse to start with hooks, or with a default or an organisation's policy, that are broken.

        Raises:
            RookeryError: ``invalid_argument``.
        """
        self.hooks.any_for(PreToolUse)
        self.policy(None)

    def policy(self, name: str | None) -> Policy:
        """What a session that names this policy would work under; the default one without a name.

        Raises:
            RookeryError: ``invalid_argument``, naming the policies that there are or the fault in the file.
        """
        return self.policies.named(name)

    def policy_of(self, session: SessionRecord) -> Policy:
        """What a session works under now: all its layers.

        Raises:
            RookeryError: ``invalid_argument``: a policy of it is gone or broken.
        """
        return self.policies.of(session).policy

    def provider_of(self, session: SessionRecord) -> SandboxProvider:
        """What makes the session's sandboxes.

        Raises:
            RookeryError: ``sandbox_unavailable``: this server has no such provider.
        """
        return self.providers.named(session.sandbox_kind)

    async def attach(self, session: SessionRecord) -> Sandbox:
        """The session's sandbox, which it must have.

        Raises:
            RookeryError: ``sandbox_lost``, ``sandbox_unavailable``.
        """
        return await self.provider_of(session).attach(session.sandbox or {}, self.sandbox_spec(session))

    def sandbox_spec(self, session: SessionRecord) -> SandboxSpec:
        """What the session's sandbox is, or would be, made for."""
        return SandboxSpec(
            session_id=session.id,
            gateway_socket=self.gateway.socket,
            limits=self.limits,
            labels={"principal": session.principal, "server": self.server_id},
        )

    def files(self, session_id: str, sandbox: Sandbox) -> WorkspaceFiles:
        """The files of a session's workspace, which lie in its sandbox.

        Raises:
            RookeryError: ``sandbox_lost``: they are out of this server's reach.
        """
        uid = sandbox.reference.get("uid")
        owner = uid if isinstance(uid, int) else None
        if sandbox.workspace is not None:
            return HostFiles(self.checkpoints, session_id, sandbox.workspace, owner)
        if isinstance(sandbox, RootSandbox):
            return RemoteFiles(self.checkpoints, session_id, sandbox, self.engines.of(sandbox), owner)
        raise RookeryError(ErrorCode.SANDBOX_LOST, "The session's files are not within reach of this server.")

    @property
    def limits(self) -> Limits:
        """Bounds of a new sandbox."""
        chosen = self.settings
        return Limits(memory_mb=chosen.memory_mb, processes=chosen.processes, cpus=chosen.cpus, disk_mb=chosen.disk_mb)
