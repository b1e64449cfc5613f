"""Who may have the next turn: bounds on turns at work, for all and for each principal, and a fair queue before them.

A prompt that finds no place waits for a while. The next place goes to the principal with the fewest turns at work, of
equals to the one that has waited longest for its turn, so nobody is held up by how much somebody else asks for.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio

from server.errors import ErrorCode, RookeryError

LOOK_S: Final = 0.1
"""How often is looked whether a turn has ended, while somebody waits."""


class Places:
    """Places for turns in this process.

    Args:
        limit: most turns at work at once.
        per_principal: most of one principal's; None: as many as there are places.
        patience_s: longest that a prompt waits.
        working: the principal of each turn at work now.
    """

    def __init__(
        self, limit: int, per_principal: int | None, patience_s: float, working: Callable[[], Iterable[str]]
    ) -> None:
        self._limit = limit
        self._per_principal = limit if per_principal is None else min(limit, per_principal)
        self._patience_s = patience_s
        self._working = working
        self._granted: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[anyio.Event]] = OrderedDict()

    @asynccontextmanager
    async def place(self, principal: str) -> AsyncIterator[None]:
        """A place for a turn, held until the turn itself counts as at work.

        Raises:
            RookeryError: ``too_many_sessions``: none became free in time.
        """
        await self._wait(principal)
        try:
            yield
        finally:
            self._give_back(principal)

    async def _wait(self, principal: str) -> None:
        granted = anyio.Event()
        self._waiting.setdefault(principal, deque()).append(granted)
        self._grant()
        try:
            with anyio.move_on_after(self._patience_s):
                while not granted.is_set():
                    with anyio.move_on_after(LOOK_S):
                        await granted.wait()
                    self._grant()
        except BaseException:
            self._withdraw(principal, granted)
            raise
        if not granted.is_set():
            self._withdraw(principal, granted)
            raise RookeryError(ErrorCode.TOO_MANY_SESSIONS, self._refusal(principal))

    def _withdraw(self, principal: str, granted: anyio.Event) -> None:
        if granted.is_set():
            self._give_back(principal)
            return
        queue = self._waiting.get(principal)
        if queue is not None:
            with suppress(ValueError):
                queue.remove(granted)
            if not queue:
                del self._waiting[principal]

    def _give_back(self, principal: str) -> None:
        self._granted[principal] -= 1
        if not self._granted[principal]:
            del self._granted[principal]
        self._grant()

    def _busy(self) -> Counter[str]:
        return Counter(self._working()) + self._granted

    def _grant(self) -> None:
        """Give free places to those who wait."""
        if not self._waiting:
            return
        busy = self._busy()
        while busy.total() < self._limit:
            fitting = [principal for principal in self._waiting if busy[principal] < self._per_principal]
            if not fitting:
                return
            chosen = min(fitting, key=lambda principal: busy[principal])
            queue = self._waiting[chosen]
            queue.popleft().set()
            if queue:
                self._waiting.move_to_end(chosen)
            else:
                del self._waiting[chosen]
            self._granted[chosen] += 1
            busy[chosen] += 1

    def _refusal(self, principal: str) -> str:
        own = self._busy()[principal]
        if own >= self._per_principal < self._limit:
            return (
                f"{own} turns of this account are at work, which is its most. Wait for one with wait_for_sessions, "
                "interrupt one, or have ROOKERY_PRINCIPAL_TURNS raised."
            )
        return (
            f"All {self._limit} places are taken by sessions at work. Wait for one with wait_for_sessions, interrupt "
            "one, or have ROOKERY_MAX_SESSIONS raised."
        )
