"""The third origin of the double, for tests alone: its faults, its sandboxes, its end."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.e2b_cloud.cloud import Cloud, Plan
from tests.e2b_cloud.control import detailed
from tests.e2b_cloud.faults import Fault
from tests.e2b_cloud.process_service import expire
from tests.e2b_cloud.processes import Cut
from tests.e2b_cloud.sandbox import Sandbox


def administration(cloud: Cloud) -> Starlette:
    """The whole origin."""

    def shown(sandbox: Sandbox) -> dict[str, Any]:
        return {
            **detailed(sandbox),
            "tree": str(sandbox.tree),
            "streams": sum(len(one.subscribers) for one in sandbox.processes.values()),
            "dropped": sum(one.dropped for one in sandbox.processes.values()),
            "commands": [
                {**one.config, "pid": one.pid, "deadline_s": one.deadline_s}
                for one in sandbox.processes.values()
                if one.end is None
            ],
            "variables": sandbox.settings.variables,
        }

    async def state(request: Request) -> Response:
        return JSONResponse(
            {
                "sandboxes": [shown(one) for one in cloud.sandboxes.values()],
                "ended": cloud.ended,
                "templates": sorted(cloud.templates),
                "requests": cloud.faults.requests,
                "faults": [asdict(fault) for fault in cloud.faults.rules],
                "lost": cloud.faults.lost,
            }
        )

    async def add_fault(request: Request) -> Response:
        cloud.faults.rules.append(Fault(**await request.json()))
        return Response(status_code=204)

    async def clear_faults(request: Request) -> Response:
        cloud.faults.clear()
        return Response(status_code=204)

    async def switch(request: Request) -> Response:
        for name, value in (await request.json()).items():
            assert hasattr(cloud.faults, name), name
            setattr(cloud.faults, name, value)
        return Response(status_code=204)

    async def plan(request: Request) -> Response:
        cloud.plan = Plan(**await request.json())
        return Response(status_code=204)

    async def kill(request: Request) -> Response:
        await cloud.kill(cloud.sandboxes[request.path_params["id"]], "a test killed it")
        return Response(status_code=204)

    async def pause(request: Request) -> Response:
        identity = request.path_params["id"]
        async with cloud.lock(identity):
            if not cloud.sandboxes[identity].paused:
                await cloud.pause(cloud.sandboxes[identity], memory=True)
        return Response(status_code=204)

    async def upstream(request: Request) -> Response:
        cloud.egress.upstreams.update(await request.json())
        return Response(status_code=204)

    async def drop_streams(request: Request) -> Response:
        for sandbox in cloud.sandboxes.values():
            sandbox.cut_streams(Cut("dropped", ""))
        return Response(status_code=204)

    async def expire_commands(request: Request) -> Response:
        for sandbox in cloud.sandboxes.values():
            for process in [one for one in sandbox.processes.values() if one.end is None]:
                await expire(sandbox, process)
        return Response(status_code=204)

    async def reset(request: Request) -> Response:
        return JSONResponse(await cloud.reset())

    return Starlette(
        routes=[
            Route("/state", state),
            Route("/faults", add_fault, methods=["POST"]),
            Route("/faults", clear_faults, methods=["DELETE"]),
            Route("/switches", switch, methods=["POST"]),
            Route("/plan", plan, methods=["POST"]),
            Route("/kill/{id}", kill, methods=["POST"]),
            Route("/pause/{id}", pause, methods=["POST"]),
            Route("/upstream", upstream, methods=["POST"]),
            Route("/drop-streams", drop_streams, methods=["POST"]),
            Route("/expire-commands", expire_commands, methods=["POST"]),
            Route("/reset", reset, methods=["POST"]),
        ]
    )
