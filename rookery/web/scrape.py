"""``/metrics`` for Prometheus: for whoever may call the server at all, and never for pages or by a foreign name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from server.callers import Scope
from server.errors import RookeryError
from tools.identity import SCOPE_KEY

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

    async def _answer(self, request: Request) -> Response:
        from server.telemetry.prometheus import CONTENT_TYPE

        # Where callers are known, sums over all tenants are for the operator alone.
        caller = request.scope.get(SCOPE_KEY)
        if caller is not None and not caller.may(Scope.ADMIN):
            return PlainTextResponse("needs the scope admin\n", status_code=403)
        try:
            census = await (await self._backend.registry()).census()
        except RookeryError as error:
            return PlainTextResponse(f"{error.code.value}\n", status_code=503)
        return Response(self._metrics.render(census), headers={"content-type": CONTENT_TYPE})
