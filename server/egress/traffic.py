"""Bytes in motion: counted, timed, and moved between two streams."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from anyio.abc import ByteStream

from server.egress.failures import EgressRefusedError, TrafficLimitError

CHUNK = 64 * 1024


class Traffic:
    """What one connection moves, within its outlet's allowance.

    Args:
        allowance: bytes left to the outlet, shared by all its connections.
        idle_s: the connection's scope is cancelled after so long without a byte.
    """

    def __init__(self, allowance: Allowance, idle_s: float) -> None:
        self._allowance = allowance
        self._idle_s = idle_s
        self.scope = anyio.CancelScope(deadline=anyio.current_time() + idle_s)
        """Everything that moves bytes runs inside."""
        self.bytes = 0
        self.guard: Callable[[], None] | None = None
        """Asked whenever bytes are moved; raises when they no longer may."""

    def count(self, size: int) -> None:
        """So many bytes were moved.

        Raises:
            TrafficLimitError: those were more than the outlet may move.
            EgressRefusedError: the guard says so.
        """
        if self.guard is not None:
            self.guard()
        self.bytes += size
        self.scope.deadline = anyio.current_time() + self._idle_s
        self._allowance.take(size)


class Allowance:
    """Bytes that an outlet may still move."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> None:
        """Use some of it.

        Raises:
            TrafficLimitError: there is not so much left.
        """
        self._left -= size
        if self._left < 0:
            raise TrafficLimitError("the agent has moved as many bytes over the network as it may")


async def exchange(inside: ByteStream, outside: ByteStream, traffic: Traffic) -> None:
    """Move bytes both ways until both ends have said all, or one is gone.

    Raises:
        EgressRefusedError: the policy no longer allows it, or the outlet may move no more.
    """
    refusals: list[EgressRefusedError] = []
    async with anyio.create_task_group() as tasks:

        async def pump(source: ByteStream, sink: ByteStream) -> None:
            try:
                while True:
                    try:
                        data = await source.receive(CHUNK)
                    except anyio.EndOfStream:
                        await sink.send_eof()
                        return
                    traffic.count(len(data))
                    await sink.send(data)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                tasks.cancel_scope.cancel()
            except EgressRefusedError as error:
                refusals.append(error)
                tasks.cancel_scope.cancel()

        tasks.start_soon(pump, inside, outside)
        tasks.start_soon(pump, outside, inside)
    if refusals:
        raise refusals[0]
