"""The control plane: sandboxes, snapshots, secrets, over REST."""

from __future__ import annotations

import os
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.e2b_cloud.cloud import DEFAULT_TIMEOUT_S, Cloud, RefusedError
from tests.e2b_cloud.control_bodies import body_of, moment
from tests.e2b_cloud.machine import MachineGoneError
from tests.e2b_cloud.sandbox import Sandbox
from tests.e2b_cloud.secret_routes import secret_routes
from tests.e2b_cloud.templates import Builds

ENVD_VERSION: Final = "0.6.13"
PAGE: Final = 100

Handler = Callable[[Request], Awaitable[Response]]


def short(sandbox: Sandbox) -> dict[str, Any]:
    """A sandbox as create and connect answer it."""
    return {
        "templateID": sandbox.settings.template,
        "sandboxID": sandbox.identity,
        "clientID": "double",
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": sandbox.token,
        "trafficAccessToken": None,
        "domain": None,
    }


def listed(sandbox: Sandbox) -> dict[str, Any]:
    """A sandbox as the list has it."""
    return {
        "templateID": sandbox.settings.template,
        "sandboxID": sandbox.identity,
        "clientID": "double",
        "envdVersion": ENVD_VERSION,
        "startedAt": moment(sandbox.started),
        "endAt": moment(sandbox.ends),
        "cpuCount": 2,
        "memoryMB": 1024,
        "diskSizeMB": 10240,
        "state": "paused" if sandbox.paused else "running",
        "metadata": sandbox.settings.metadata,
    }


def detailed(sandbox: Sandbox) -> dict[str, Any]:
    """A sandbox with all that is known of it."""
    settings = sandbox.settings
    return {
        **listed(sandbox),
        "envdAccessToken": sandbox.token,
        "network": settings.network,
        "allowInternetAccess": settings.allow_internet_access,
        "lifecycle": {
            "autoResume": settings.auto_resume,
            "onTimeout": "pause" if settings.auto_pause else "kill",
        },
        "pauseMode": sandbox.pause_mode,
        "envdUnresponsiveAtPause": False,
    }


class Control:
    """The handlers."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud

    def owner(self, request: Request) -> str:
        """Whose key it is.

        Raises:
            RefusedError: 401.
        """
        key = request.headers.get("x-api-key", "")
        if key not in self.cloud.api_keys:
            raise RefusedError(401, "Invalid API key")
        return key

    def sandbox(self, request: Request) -> Sandbox:
        """The sandbox in the path."""
        return self.cloud.get(request.path_params["id"], self.owner(request))

    async def create(self, request: Request) -> Response:
        """``POST /v2/sandboxes``."""
        owner = self.owner(request)
        sandbox = await self.cloud.create_once(owner, request.headers.get("idempotency-key"), await body_of(request))
        return JSONResponse(short(sandbox), status_code=201)

    async def connect(self, request: Request) -> Response:
        """``POST /v2/sandboxes/{id}/connect``: extends a running one, resumes a paused one."""
        sandbox = self.sandbox(request)
        body = await body_of(request)
        timeout_s = self.cloud.checked_timeout(body.get("timeout", DEFAULT_TIMEOUT_S))
        async with self.cloud.lock(sandbox.identity):
            if sandbox.paused:
                memory = body.get("memory", True) is not False and sandbox.pause_mode == "full"
                await self.cloud.resume(sandbox, timeout_s, memory=memory)
                return JSONResponse(short(sandbox), status_code=201)
            if time.time() + timeout_s > sandbox.ends:
                self.cloud.set_end(sandbox, timeout_s)
            return JSONResponse(short(sandbox))

    async def get(self, request: Request) -> Response:
        """``GET /sandboxes/{id}``."""
        return JSONResponse(detailed(self.sandbox(request)))

    async def list(self, request: Request) -> Response:
        """``GET /v2/sandboxes``, by metadata and state, page by page."""
        owner, query = self.owner(request), request.query_params
        # The SDK quotes keys and values once more than their form needs.
        pairs = urllib.parse.parse_qsl(query.get("metadata", ""), keep_blank_values=True)
        wanted = {urllib.parse.unquote(key): urllib.parse.unquote(value) for key, value in pairs}
        states = ",".join(query.getlist("state") or ["running,paused"]).split(",")
        found = [
            one
            for one in self.cloud.sandboxes.values()
            if one.owner == owner
            and ("paused" if one.paused else "running") in states
            and all(one.settings.metadata.get(key) == value for key, value in wanted.items())
            and query.get("template") in (None, one.settings.template)
        ]
        found.sort(key=lambda one: (one.started, one.identity), reverse=query.get("order", "desc") != "asc")
        return paged(request, [listed(one) for one in found], "sandboxID")

    async def kill(self, request: Request) -> Response:
        """``DELETE /sandboxes/{id}``."""
        await self.cloud.kill(self.sandbox(request), "it was killed")
        return Response(status_code=204)

    async def set_timeout(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/timeout``."""
        sandbox = self.sandbox(request)
        if sandbox.paused:
            raise RefusedError(404, f"sandbox {sandbox.identity} is not running")
        self.cloud.set_end(sandbox, self.cloud.checked_timeout((await body_of(request))["timeout"]))
        return Response(status_code=204)

    async def pause(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/pause``."""
        sandbox = self.sandbox(request)
        async with self.cloud.lock(sandbox.identity):
            await self.cloud.pause(sandbox, memory=(await body_of(request)).get("memory", True) is not False)
        return Response(status_code=204)

    async def network(self, request: Request) -> Response:
        """``PUT /sandboxes/{id}/network``: replaces all. There is no network here, so it is recorded alone."""
        sandbox = self.sandbox(request)
        body = await body_of(request)
        sandbox.settings.allow_internet_access = body.pop("allow_internet_access", None)
        sandbox.settings.network = body
        return Response(status_code=204)

    async def metrics(self, request: Request) -> Response:
        """``GET /sandboxes/{id}/metrics``: one measurement, of now."""
        sandbox = self.sandbox(request)
        if sandbox.machine is None or sandbox.paused:
            return JSONResponse([])
        usage, _ = await sandbox.machine.ask("usage")
        return JSONResponse(
            [
                {
                    "timestamp": moment(time.time()),
                    "timestampUnix": int(time.time()),
                    "cpuCount": 2,
                    "cpuUsedPct": round(min(os.getloadavg()[0], 2) * 50, 2),
                    "memUsed": usage["memory"],
                    "memTotal": 1024 << 20,
                    "memCache": 0,
                    "diskUsed": usage["disk_used"],
                    "diskTotal": 10240 << 20,
                }
            ]
        )

    async def snapshot(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/snapshots``."""
        sandbox = self.sandbox(request)
        async with self.cloud.lock(sandbox.identity):
            template = await self.cloud.snapshot(sandbox, (await body_of(request)).get("name"))
        return JSONResponse({"snapshotID": template.identity, "names": sorted(template.names)}, status_code=201)

    async def fork(self, request: Request) -> Response:
        """``POST /sandboxes/{id}/fork``: copies of the disk that boot anew."""
        sandbox = self.sandbox(request)
        body = await body_of(request)
        timeout_s = self.cloud.checked_timeout(body.get("timeout", DEFAULT_TIMEOUT_S))
        if sandbox.paused:
            raise RefusedError(409, f"sandbox {sandbox.identity} is paused")
        async with self.cloud.lock(sandbox.identity):
            copies = await self.cloud.copy(sandbox, int(body.get("count", 1)), timeout_s)
        return JSONResponse([{"sandbox": short(one)} for one in copies], status_code=201)

    async def snapshots(self, request: Request) -> Response:
        """``GET /snapshots``."""
        owner, query = self.owner(request), request.query_params
        found = [
            {"snapshotID": one.identity, "names": sorted(one.names)}
            for one in self.cloud.templates.values()
            if one.snapshot_of is not None
            and one.owner == owner
            and query.get("sandboxID") in (None, one.snapshot_of)
            and (query.get("name") is None or query["name"] in one.names)
        ]
        return paged(request, found, "snapshotID")


def paged(request: Request, rows: list[dict[str, Any]], key: str) -> Response:
    """One page, and where the next begins."""
    limit = min(int(request.query_params.get("limit", PAGE)), PAGE)
    after = request.query_params.get("nextToken")
    start = next((number + 1 for number, row in enumerate(rows) if row[key] == after), 0)
    page = rows[start : start + limit]
    more = {"x-next-token": page[-1][key]} if start + limit < len(rows) else {}
    return JSONResponse(page, headers=more)


async def refused(request: Request, error: Exception) -> Response:
    """An error as the API gives it."""
    assert isinstance(error, RefusedError)
    body = {"code": error.status, "message": str(error)}
    return JSONResponse(body, status_code=error.status, headers=error.headers)


async def vanished(request: Request, error: Exception) -> Response:
    """The machine ended under the request."""
    return JSONResponse({"code": 500, "message": "the sandbox ended"}, status_code=500)


def control_plane(cloud: Cloud) -> Starlette:
    """The whole origin."""
    control = Control(cloud)
    builds = Builds(cloud, control.owner)
    routes = [
        Route("/v2/sandboxes", control.create, methods=["POST"]),
        Route("/v2/sandboxes", control.list, methods=["GET"]),
        Route("/v2/sandboxes/{id}/connect", control.connect, methods=["POST"]),
        Route("/sandboxes/{id}", control.get, methods=["GET"]),
        Route("/sandboxes/{id}", control.kill, methods=["DELETE"]),
        Route("/sandboxes/{id}/timeout", control.set_timeout, methods=["POST"]),
        Route("/sandboxes/{id}/pause", control.pause, methods=["POST"]),
        Route("/sandboxes/{id}/network", control.network, methods=["PUT"]),
        Route("/sandboxes/{id}/metrics", control.metrics, methods=["GET"]),
        Route("/sandboxes/{id}/snapshots", control.snapshot, methods=["POST"]),
        Route("/sandboxes/{id}/fork", control.fork, methods=["POST"]),
        Route("/snapshots", control.snapshots, methods=["GET"]),
        *builds.routes(),
        *secret_routes(cloud.egress, control.owner),
    ]
    return Starlette(routes=routes, exception_handlers={RefusedError: refused, MachineGoneError: vanished})
