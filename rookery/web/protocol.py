"""The HTTP protocol of the endpoint for clients."""

from __future__ import annotations

from typing import Any, Final

from server.http_protocol import BoundedProtocol

ABORT: Final = "abort"
"""In the state of each request: a function that cuts its connection off without waiting for what is not yet read."""


class ClientProtocol(BoundedProtocol):
    """Tells each request how its connection is cut off."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Also for the protocol of a WebSocket that takes the connection over.
        self.app_state = {**self.app_state, ABORT: self._abort}

    def _abort(self) -> None:
        self.transport.abort()
