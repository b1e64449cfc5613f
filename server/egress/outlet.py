"""The way out of one agent's sandbox: takes the connections that programs inside make to their proxy."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog
from anyio.abc import SocketListener, SocketStream, TaskGroup

from policies.hosts import Egress
from server.egress.conversation import Conversation, Rules
from server.egress.failures import TrafficLimitError
from server.egress.journal import Journal, Report
from server.egress.options import EgressOptions
from server.egress.traffic import Allowance, Traffic
from server.egress.trust import trust_files

if TYPE_CHECKING:
    from server.egress.authority import SandboxAuthority

_GONE: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)

log = structlog.get_logger(__name__)


class EgressOutlet:
    """Implements :class:`server.sandboxes.base.Outlet`. Made by :meth:`.EgressProxy.open`; refuses all until told.

    Args:
        tasks: where its work runs; owned by who made the proxy.
        options: how it reaches the outside.
    """

    def __init__(self, tasks: TaskGroup, options: EgressOptions) -> None:
        self._tasks = tasks
        self._options = options
        self._rules: Rules = _nothing
        self._journal = Journal()
        self._allowance = Allowance(options.bounds.bytes)
        self._places = anyio.Semaphore(options.bounds.connections)
        self._scopes: set[anyio.CancelScope] = set()
        self._closed = False
        self._own: SandboxAuthority | None = None
        self._making = anyio.Lock()

    def allow(self, rules: Rules, report: Report | None = None) -> None:
        """Let through what these rules permit, from now on.

        Args:
            rules: gives what the policy lets out; asked at each decision and while bytes flow, so that a policy that
                was tightened holds at once. If it raises, nothing passes.
            report: takes notices for the session; given once.
        """
        self._rules = rules
        if report is not None and not self._closed:
            self._start(partial(self._journal.serve, report))

    async def trust(self) -> dict[str, bytes]:
        """Files for the sandbox's configuration directory, so that programs trust the connections opened here."""
        authority = await self._authority()
        return await anyio.to_thread.run_sync(trust_files, authority.pem, self._options.trust)

    async def _authority(self) -> SandboxAuthority:
        async with self._making:
            if self._own is None:
                self._own = await anyio.to_thread.run_sync(_make_authority, self._options)
            return self._own

    def _rules_now(self) -> Egress:
        try:
            return self._rules()
        except Exception:
            log.exception("egress_rules_unreadable")
            return _nothing()

    def serve(self, listener: socket.socket) -> Callable[[], None]:
        """Take the connections of a listening socket; see :meth:`server.sandboxes.base.Outlet.serve`."""
        if self._closed:
            listener.close()
            return lambda: None
        return self._start(partial(self._listen, listener)).cancel

    def close(self) -> None:
        """End it with all its connections. Idempotent."""
        self._closed = True
        for scope in self._scopes:
            scope.cancel()

    def _start(self, work: Callable[[], Awaitable[None]]) -> anyio.CancelScope:
        scope = anyio.CancelScope()
        self._scopes.add(scope)

        async def supervised() -> None:
            try:
                with scope:
                    await work()
            except Exception:
                # The proxy serves other agents too.
                log.exception("egress_outlet_failed")
            finally:
                self._scopes.discard(scope)

        self._tasks.start_soon(supervised)
        return scope

    async def _listen(self, listener: socket.socket) -> None:
        with listener:
            async with await SocketListener.from_socket(listener) as connections, anyio.create_task_group() as tasks:
                while True:
                    # The place comes before the connection, so that no flood of them takes the server's descriptors.
                    await self._places.acquire()
                    try:
                        stream = await connections.accept()
                    except BaseException:
                        self._places.release()
                        raise
                    tasks.start_soon(self._serve, stream)

    async def _serve(self, stream: SocketStream) -> None:
        """One connection from inside, until it is over. Never raises: what goes wrong is the client's answer."""
        bounds = self._options.bounds
        traffic = Traffic(self._allowance, bounds.idle_s)
        try:
            with anyio.move_on_after(bounds.total_s), traffic.scope:
                async with stream:
                    await Conversation(
                        stream, traffic, self._rules_now, self._options, self._journal, self._authority
                    ).run()
        except (TrafficLimitError, OSError, *_GONE) as error:
            log.debug("egress_connection_ended", error=str(error))
        except Exception:
            log.exception("egress_connection_failed")
        finally:
            self._places.release()


def _nothing() -> Egress:
    """No layer at all: nothing is allowed (row X12)."""
    return Egress(())


def _make_authority(options: EgressOptions) -> SandboxAuthority:
    # Imported here: it takes half a second, and few sandboxes need one.
    from server.egress.authority import SandboxAuthority

    return SandboxAuthority(options.clock)
