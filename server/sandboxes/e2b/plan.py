"""The limits of an E2B plan, kept before E2B has to refuse: sandboxes that run at once, and creations per second."""

from __future__ import annotations

from typing import Final

import anyio

from server.errors import ErrorCode, RookeryError

FULL: Final = (
    "All {count} sandboxes that the E2B plan runs at once are in use (ROOKERY_E2B_CONCURRENCY), and none became free "
    "within {seconds:g} s. Wait for a session with wait_for_sessions, interrupt or end one, or raise the plan."
)


class Plan:
    """Places for running sandboxes, and the pace of creations, in this process.

    Args:
        concurrency: sandboxes that run at once.
        creations_per_s: how often one may be made.
        queue_s: longest wait for a place.
    """

    def __init__(self, concurrency: int, creations_per_s: float, queue_s: float) -> None:
        self._concurrency = concurrency
        self._places = anyio.Semaphore(concurrency)
        self._pace = anyio.Lock()
        self._gap = 1.0 / creations_per_s
        self._next = 0.0
        self._queue_s = queue_s

    @property
    def free(self) -> int:
        """Places that are free."""
        return self._places.value

    async def take_place(self) -> None:
        """Wait for a place, and take it.

        Raises:
            RookeryError: ``too_many_sessions``: none became free in time.
        """
        with anyio.move_on_after(self._queue_s):
            await self._places.acquire()
            return
        raise RookeryError(
            ErrorCode.TOO_MANY_SESSIONS, FULL.format(count=self._concurrency, seconds=self._queue_s), retryable=True
        )

    def give_place(self) -> None:
        """Give a place back."""
        self._places.release()

    async def pace(self) -> None:
        """Wait for the turn to create one."""
        async with self._pace:
            now = anyio.current_time()
            await anyio.sleep(max(0.0, self._next - now))
            self._next = max(now, self._next) + self._gap
