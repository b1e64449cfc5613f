"""The calls that a session has made: what a policy's conditions on state are judged by.

Kept in memory while an actor lives, and read from the session's log when it starts, so that sleep forgets nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import takewhile
from typing import Final

from policies import ToolUse
from server.models import Event, EventKind
from server.store import Store

MAX_HISTORY: Final = 10_000
"""Calls remembered; of a longer history the latest."""

PAGE: Final = 5_000
"""Events read at once."""


class CallHistory:
    """Admitted calls in their order, those in flight included."""

    def __init__(self) -> None:
        self._calls: OrderedDict[str, ToolUse] = OrderedDict()
        self._admitted: set[str] = set()
        self._denied: dict[int, list[str]] = {}

    async def restore(self, store: Store, session_id: str) -> None:
        """Read what earlier actors of the session admitted.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        after, kinds = 0, [EventKind.TOOL_CALL, EventKind.DENIAL]
        while page := await store.events(session_id, after=after, limit=PAGE, kinds=kinds):
            for event in page:
                self._replay(event)
            after = page[-1].seq

    def _replay(self, event: Event) -> None:
        call, tool = event.data.get("id"), event.data.get("tool")
        if not isinstance(call, str) or not isinstance(tool, str) or call in self._admitted:
            return
        if event.kind is EventKind.DENIAL:
            self._calls.pop(call, None)
            self._denied.setdefault(event.turn, []).append(call)
        else:
            self._keep(call, ToolUse(tool, event.at.timestamp(), event.turn))

    def denied(self, turn: int) -> tuple[str, ...]:
        """Calls of a turn that earlier actors denied, for a turn that slept goes on counting."""
        return tuple(self._denied.get(turn, ()))

    def was_denied(self, call: str, *, before: int) -> bool:
        """Whether a call was denied in a turn before this one."""
        return any(call in calls for turn, calls in self._denied.items() if turn < before)

    def before(self, call: str) -> tuple[ToolUse, ...]:
        """What a call is judged by: all that was admitted before it, and never the call itself."""
        if call not in self._calls:
            return tuple(self._calls.values())
        if call in self._admitted:
            return tuple(self._calls[known] for known in takewhile(lambda known: known != call, self._calls))
        return tuple(use for known, use in self._calls.items() if known != call)

    def admit(self, call: str, use: ToolUse) -> None:
        """Count a call from now on. Once is enough: it may be judged several times."""
        if call not in self._admitted:
            # One that was put off comes again after a sleep, and is admitted only now.
            self._calls.pop(call, None)
            self._admitted.add(call)
            self._keep(call, use)

    def withdraw(self, call: str) -> None:
        """Do not count a call that was denied after all."""
        self._admitted.discard(call)
        self._calls.pop(call, None)

    def _keep(self, call: str, use: ToolUse) -> None:
        self._calls[call] = use
        while len(self._calls) > MAX_HISTORY:
            gone, _ = self._calls.popitem(last=False)
            self._admitted.discard(gone)
