"""Grants: what lets one sandbox use the model, and what the gateway knows of its use.

A grant is opened before its session is known (a warm agent waits for its prompt), bound to a session once, and
revoked when the agent's process ends. The token is shown at its opening only; the table keeps its SHA-256 (it is
a 256-bit random value, so a plain hash is enough), and a revoked token is forgotten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

import anyio
from opentelemetry.context import Context

from server.clock import Clock
from server.gateway.refusals import Cause
from server.models import LedgerEntry

MAX_FAILURES: Final = 32
"""Failures kept for one turn: enough to classify it, bounded whatever an agent does."""


@dataclass(frozen=True)
class UpstreamFailure:
    """A model request that failed, as the gateway saw it: what a turn's error is classified by.

    Args:
        status: HTTP status; 0 when the upstream could not be reached.
        error_type: the error's type as the Messages API names it.
        message: the upstream's text, for the log only; or ours for a refusal.
        at: when.
        retry_after: seconds the upstream asked to wait.
        model: the model asked for, where it is a well-formed name.
        refused: why the gateway itself refused the request; None for a failure of the upstream.
    """

    status: int
    error_type: str
    message: str
    at: datetime
    retry_after: float | None = None
    model: str | None = None
    refused: Cause | None = None


class Terms(Protocol):
    """What a policy says about the use of the model; :class:`policies.Policy` says it."""

    @property
    def server_tools(self) -> frozenset[str]:
        """Features run by the provider that may be asked for: see :mod:`server.gateway.features`."""
        ...

    @property
    def models(self) -> str:
        """The models that may be used, in words for the agent."""
        ...

    def permits_model(self, model: str) -> bool:
        """Whether a model of this name may be used."""
        ...


@dataclass(frozen=True)
class Binding:
    """Whose requests these are."""

    session_id: str
    root_id: str
    principal: str


@dataclass(eq=False)
class Grant:
    """One sandbox's use of the model. Made by :meth:`GrantTable.open` only."""

    id: str
    token: str = field(repr=False)
    """The secret that the sandbox sends; readable inside it, so it buys metered model requests and nothing else.
    Empty once revoked."""
    _table: GrantTable = field(repr=False)
    turn: int = 0
    """Number of the session's turn that requests are booked on; set by the session's actor."""
    trace: Context | None = field(default=None, repr=False)
    """The trace of that turn."""
    terms: Callable[[], Terms] | None = None
    """The policy in force, asked for each request so that a tightened one holds at once. None, or one that raises,
    lets no request pass."""
    failures: list[UpstreamFailure] = field(default_factory=list)
    """Failures since the actor last cleared them, oldest first, at most :data:`MAX_FAILURES`. A request that
    succeeds takes the upstream's earlier failures away: they were overcome."""
    requests: int = 0
    """Model requests taken so far, refused ones included; token counts are not model requests."""
    in_flight: int = 0
    """Requests that are not settled yet, ledger entry included."""
    tell: Callable[[Mapping[str, Any]], None] | None = field(default=None, repr=False)
    """Takes what the session's log should say of its requests, as data of the event NOTICE; set by the actor."""
    waiting_until: datetime | None = None
    """When a request of this agent will be sent that waits now, because the model API limits the rate; else None."""
    held_bytes: int = 0
    """Bytes of request bodies held in memory now."""
    binding: Binding | None = None
    peer: str | None = None
    """The pid namespace of its first request: that of its sandbox. Requests from another are refused (row X07)."""
    revoked: bool = False
    unrecorded: list[LedgerEntry] = field(default_factory=list, repr=False)
    """Entries that the ledger did not take: no further request passes until it took them."""
    _said: tuple[object, ...] = ()
    _scopes: set[anyio.CancelScope] = field(default_factory=set, repr=False)
    _quiet: anyio.Event = field(default_factory=anyio.Event, repr=False)

    def bind(self, *, session_id: str, root_id: str, principal: str) -> None:
        """Say whose requests these are. A grant is bound once; binding again to the same session changes nothing.

        Raises:
            ValueError: it is bound to another session.
        """
        binding = Binding(session_id, root_id, principal)
        if self.binding not in (None, binding):
            raise ValueError("the grant is bound to another session")
        self.binding = binding

    def is_from_its_sandbox(self, peer: str | None) -> bool:
        """Whether a request comes from where the first one came from; True where the kernel could not tell."""
        if self.peer is None:
            self.peer = peer
        return peer is None or peer == self.peer

    def say(self, about: tuple[object, ...], text: str, **data: Any) -> None:
        """Have the session's log say something, once for as long as it is about the same."""
        if self.tell is not None and about != self._said:
            self._said = about
            self.tell({"text": text, **data})

    def revoke(self) -> None:
        """Make the token useless and cut what runs. What came until then is still metered. Idempotent."""
        self.revoked = True
        self._table.forget(self)
        self.token = ""
        for scope in list(self._scopes):
            scope.cancel()

    async def quiet(self) -> None:
        """Wait until no request is in flight, so that the ledger holds all there is. The caller bounds the wait."""
        while self.in_flight:
            await self._quiet.wait()

    def record_failure(self, failure: UpstreamFailure) -> None:
        """Keep a failure; the oldest goes when there are too many."""
        self.failures.append(failure)
        del self.failures[:-MAX_FAILURES]

    def record_success(self) -> None:
        """A model request succeeded; refusals of ours stay."""
        self.failures[:] = [failure for failure in self.failures if failure.refused is not None]

    def enter(self, scope: anyio.CancelScope) -> None:
        """A request begins; ``revoke`` cancels its scope."""
        if not self.in_flight:
            self._quiet = anyio.Event()
        self.in_flight += 1
        self._scopes.add(scope)

    def leave(self, scope: anyio.CancelScope) -> None:
        """A request is settled."""
        self._scopes.discard(scope)
        self.in_flight -= 1
        if not self.in_flight:
            self._quiet.set()


class GrantTable:
    """All living grants by the hash of their token."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._grants: dict[bytes, Grant] = {}

    def open(self) -> Grant:
        """A new, unbound grant."""
        grant = Grant(id=self._clock.identifier("grant"), token=self._clock.secret(), _table=self)
        self._grants[_digest(grant.token)] = grant
        return grant

    def adopt(self, token: str) -> Grant:
        """The grant of an agent that another server process started and that lives on: unbound, with its token.

        Raises:
            ValueError: the token is in use.
        """
        if self.find(token) is not None:
            raise ValueError("the token is in use")
        grant = Grant(id=self._clock.identifier("grant"), token=token, _table=self)
        self._grants[_digest(token)] = grant
        return grant

    def find(self, token: str) -> Grant | None:
        """The grant of a token, if it lives. The look-up is by hash, so its time tells nothing about tokens."""
        return self._grants.get(_digest(token))

    def forget(self, grant: Grant) -> None:
        """Take a grant out. Idempotent."""
        self._grants.pop(_digest(grant.token), None)

    def all(self) -> list[Grant]:
        """The living grants."""
        return list(self._grants.values())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
