"""The model gateway: the only way out of a sandbox, and the only place that holds the credential.

An ASGI application on a Unix socket that lies inside every sandbox. It takes a grant's token, forwards the three
endpoints of the Messages API that an agent needs, and writes every model request into the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import structlog
from anyio.abc import TaskStatus

from server.budgets import BudgetBook, Caps
from server.gateway.account import Account, Books
from server.gateway.admission import Admission
from server.gateway.exchange import Exchange, Means
from server.gateway.failures import no_credential
from server.gateway.grants import Grant, GrantTable
from server.gateway.limiter import FleetLimiter
from server.gateway.listener import remove_socket, serve_app, unix_listener
from server.gateway.recorder import LedgerWriter, Recorder
from server.gateway.refusals import Cause, Refusal, forbidden, unauthorised
from server.gateway.requests import Endpoint, read_head, token_of
from server.gateway.responses import Reply
from server.telemetry.metrics import NO_METRICS, Metrics

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.types import Receive, Scope, Send

    from server.clock import Clock
    from server.gateway.prices import Price, PriceBook
    from server.gateway.upstream import Upstream
    from server.models import Usage

REQUEST_TIMEOUT_S: Final = 3600.0
"""Longest request, whatever both sides do: the API itself gives up far earlier."""

_log = structlog.get_logger(__name__)


class Gateway:
    """Forwards and meters model requests.

    Args:
        upstream: where requests go.
        ledger: where they are written down.
        prices: what they cost.
        clock: time and identifiers.
        budgets: caps that bind before each request; its reservations are settled by the ledger. None: no caps.
        caps: the operator's caps; a session's own is in its record.
        owner: id of this server process, in reservations.
        fallbacks: models that may answer in the place of one that is overloaded, where a session's policy permits.
        metrics: told of each model request.
    """

    def __init__(
        self,
        upstream: Upstream,
        ledger: LedgerWriter,
        prices: PriceBook,
        clock: Clock,
        *,
        budgets: BudgetBook | None = None,
        caps: Caps | None = None,
        owner: str = "",
        fallbacks: Sequence[str] = (),
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._upstream = upstream
        self._recorder = Recorder(ledger)
        self._books = Books(self._recorder, prices, clock, metrics)
        self._admission = None if budgets is None else Admission(budgets, prices, caps or Caps(), owner)
        self._limiter = FleetLimiter(clock)
        self._fallbacks = tuple(fallbacks)
        self._grants = GrantTable(clock)
        self._means: Means | None = None
        self._socket: Path | None = None

    @property
    def socket(self) -> Path:
        """Where it listens on this host.

        Raises:
            RuntimeError: it does not serve.
        """
        if self._socket is None:
            raise RuntimeError("the gateway does not serve yet")
        return self._socket

    def open_grant(self) -> Grant:
        """A new grant, unbound: its requests are refused until :meth:`Grant.bind`."""
        return self._grants.open()

    def waiting_until(self, session_id: str) -> datetime | None:
        """When the earliest waiting request of a session's agent will be sent; None when none waits."""
        waits = [
            grant.waiting_until
            for grant in self._grants.all()
            if grant.waiting_until is not None and grant.binding is not None and grant.binding.session_id == session_id
        ]
        return min(waits, default=None)

    def adopt_grant(self, token: str) -> Grant:
        """The grant of an agent that outlived the server process that had opened it; see :meth:`GrantTable.adopt`.

        Raises:
            ValueError: the token is in use.
        """
        return self._grants.adopt(token)

    def price(self, model: str, usage: Usage, at: datetime) -> Price | None:
        """What a use of a model costs; None when the price is not known."""
        return self._books.prices.price(model, usage, at)

    def require_credential(self) -> None:
        """Say at once what the first model request would find.

        Raises:
            RookeryError: ``model_auth_failed`` when the upstream needs a credential and none is set.
        """
        if self._upstream.needs_credential and self._upstream.credential() is None:
            raise no_credential()

    async def serve(self, socket: Path, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve on a Unix socket until cancelled; then every grant is revoked and every request settled.

        Args:
            socket: path of the socket, in a directory that only its owner may enter (mode 0700): the socket itself
                is open to all uids, because sandboxes run under others. At most 107 bytes.
            task_status: told when requests are taken.

        Raises:
            OSError: the path cannot be listened on.
        """
        listener = unix_listener(socket)
        try:
            async with self._upstream.client() as client, anyio.create_task_group() as group:
                # In a thread: it takes a quarter of a second, and requests need not wait for it.
                group.start_soon(anyio.to_thread.run_sync, self._books.prices.warm)
                self._means = Means(
                    self._upstream, client, self._books, self._limiter, self._admission, self._fallbacks
                )
                self._socket = socket
                await serve_app(self, listener, on_stop=self._end_grants, task_status=task_status)
        finally:
            self._socket = self._means = None
            remove_socket(socket)

    def _end_grants(self) -> None:
        for grant in self._grants.all():
            grant.revoke()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        if scope["type"] != "http":
            return
        reply = Reply(send)
        try:
            await self._serve_request(scope, receive, reply)
        except Refusal as refusal:
            await reply.refuse(refusal)
        except Exception:
            _log.exception("gateway_request_crashed")
            await reply.refuse(Refusal(500, "api_error", "The gateway failed.", cause=Cause.UPSTREAM))

    async def _serve_request(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        inbound = read_head(scope)
        grant = self._grants.find(token_of(inbound.headers))
        if grant is None:
            raise unauthorised()
        metered = inbound.endpoint is Endpoint.MESSAGES
        grant.requests += metered
        if grant.binding is None:
            raise forbidden("This token waits for its session: no request is taken before the first prompt.")
        client: tuple[str, int] | None = scope.get("client")
        if not grant.is_from_its_sandbox(None if client is None else client[0]):
            _log.warning("token_from_another_sandbox", session_id=grant.binding.session_id, grant_id=grant.id)
            raise unauthorised()
        assert self._means is not None
        account = Account(self._books, grant, grant.binding, metered=metered)
        exchange = Exchange(self._means, account, grant, grant.binding, inbound, reply)
        with anyio.move_on_after(REQUEST_TIMEOUT_S) as running:
            grant.enter(running)
            try:
                await exchange.run(receive)
            finally:
                grant.leave(running)
        if not reply.finished and running.cancelled_caught:
            raise unauthorised() if grant.revoked else Refusal(504, "timeout_error", "The request took too long.")
