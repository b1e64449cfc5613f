"""How many requests of one client may be under way: each holds a task, whatever it waits for."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

MAX_UNDERWAY: Final = 1_000
"""A client that follows as many sessions as fit onto a machine is far from it."""


class Underway:
    """The requests of a client that are not answered yet, by their ids, which it may have used twice (row P02)."""

    def __init__(self, most: int = MAX_UNDERWAY) -> None:
        self._most = most
        self._ids: Counter[Any] = Counter()

    def admits(self, message: JSONRPCMessage) -> bool:
        """Whether a message of the client may be passed on; one that is a request is counted from then on."""
        match message:
            case JSONRPCRequest(id=request) if self._ids.total() >= self._most:
                return False
            case JSONRPCRequest(id=request):
                self._ids[request] += 1
            case JSONRPCNotification(method="notifications/cancelled", params={"requestId": request}):
                # Such a request need not be answered.
                self._forget(request)
            case _:
                pass
        return True

    def hear(self, message: JSONRPCMessage) -> None:
        """A message of the server; an answer ends its request."""
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            self._forget(message.id)

    def _forget(self, request: Any) -> None:
        if isinstance(request, str | int) and self._ids[request] > 1:
            self._ids[request] -= 1
        elif isinstance(request, str | int):
            del self._ids[request]
