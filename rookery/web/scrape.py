"""``/metrics`` for Prometheus: for whoever may call the server at all, and never for pages or by a foreign name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from server.errors import RookeryError

if TYPE_CHECKING:
    from rookery.backend import BackgroundBackend
    from server.telemetry.prometheus import PrometheusMetrics


class Scrape:
    """Answers scrapes.

    Args:
        backend: whose registry knows what there is.
        metrics: what that registry was given to count with.
    """

    def __init__(self, backend: BackgroundBackend, metrics: PrometheusMetrics) -> None:
        self._backend = backend
        self._metrics = metrics

    def routes(self) -> list[Route]:
        """The one route."""
        return [Route("/metrics", self._answer)]

    async def _answer(self, _request: Request) -> Response:
        from server.telemetry.prometheus import CONTENT_TYPE

        try:
            census = await (await self._backend.registry()).census()
        except RookeryError as error:
            return PlainTextResponse(f"{error.code.value}\n", status_code=503)
        return Response(self._metrics.render(census), headers={"content-type": CONTENT_TYPE})
