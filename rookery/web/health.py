"""What supervisors ask: whether the process lives, and whether it should be sent work."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from rookery.backend import BackgroundBackend


@dataclass
class Health:
    """Whether the server takes work.

    Args:
        backend: whose registry must have started.
    """

    backend: BackgroundBackend
    draining: bool = False
    """Set when the server is about to end."""

    def routes(self) -> list[Route]:
        """``/healthz`` answers as long as the process does; ``/readyz`` once the registry serves, until the end."""
        return [Route("/healthz", self._alive), Route("/readyz", self._ready)]

    async def _alive(self, _request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _ready(self, _request: Request) -> Response:
        if self.draining:
            return PlainTextResponse("draining\n", status_code=503)
        if not self.backend.is_ready:
            return PlainTextResponse("starting\n", status_code=503)
        return PlainTextResponse("ok\n")
