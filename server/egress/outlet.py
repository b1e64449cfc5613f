"""The way out of one agent's sandbox: takes the connections that programs inside make to their proxy."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import structlog
from anyio.abc import SocketListener, SocketStream, TaskGroup

from policies.hosts import Egress
from server.egress.conversation import Conversation
from server.egress.failures import TrafficLimitError
from server.egress.journal import Journal, Report
from server.egress.options import EgressOptions
from server.egress.traffic import Allowance, Traffic

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
        # No layer at all: nothing is allowed (row X12).
        self._rules = Egress(())
        self._journal = Journal()
        self._allowance = Allowance(options.bounds.bytes)
        self._places = anyio.Semaphore(options.bounds.connections)
        self._scopes: set[anyio.CancelScope] = set()
        self._closed = False

    def allow(self, rules: Egress, report: Report | None = None) -> None:
        """Let through what these rules permit, from now on; what runs already is not judged again.

        Args:
            rules: what the policy lets out.
            report: takes notices for the session; given once.
        """
        self._rules = rules
        if report is not None and not self._closed:
            self._start(partial(self._journal.serve, report))

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
                    await Conversation(stream, traffic, self._rules, self._options, self._journal).run()
        except (TrafficLimitError, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            log.debug("egress_connection_ended", error=str(error))
        except Exception:
            log.exception("egress_connection_failed")
        finally:
            self._places.release()
