"""Builds of templates, as far as E2B's Template SDK needs them.

Files are copied and commands are run for real, in a sandbox of the base. What would come over the network is not: this
machine's ``/usr`` stands for every image, and a step of a package manager counts as done and is written to the log.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.e2b_cloud.cloud import CLI_INSIDE, Cloud, RefusedError, Template
from tests.e2b_cloud.control_bodies import body_of, moment
from tests.e2b_cloud.processes import Cut, End, Output, follow
from tests.e2b_cloud.sandbox import Sandbox, Settings

NEEDS_NETWORK: Final = re.compile(
    r"(^|[;&|]\s*|\bsudo\s+)(DEBIAN_FRONTEND=\S+\s+)?(apt-get|apt|npm|npx|pip3?|curl|wget)\b"
)
LOG_PAGE: Final = 100


@dataclass
class Build:
    """One build."""

    identity: str
    template: Template
    status: str = "waiting"
    log: list[dict[str, str]] = field(default_factory=list)
    reason: dict[str, Any] | None = None

    def say(self, message: str, level: str = "info") -> None:
        """One line of its log."""
        self.log.append({"timestamp": moment(time.time()), "level": level, "message": message})


class Builds:
    """The handlers."""

    def __init__(self, cloud: Cloud, owner: Callable[[Request], str]) -> None:
        self.cloud = cloud
        self.owner = owner
        self.builds: dict[str, Build] = {}
        self._running: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v3/templates", self.request, methods=["POST"]),
            Route("/templates", self.list, methods=["GET"]),
            Route("/v2/templates", self.list, methods=["GET"]),
            Route("/templates/aliases/{alias}", self.alias, methods=["GET"]),
            Route("/templates/{id}/files/{hash}", self.upload_link, methods=["GET"]),
            Route("/uploads/{hash}", self.upload, methods=["PUT"]),
            Route("/v2/templates/{id}/builds/{build}", self.start, methods=["POST"]),
            Route("/templates/{id}/builds/{build}/status", self.status, methods=["GET"]),
            Route("/templates/{id}", self.remove, methods=["DELETE"]),
        ]

    async def request(self, request: Request) -> Response:
        """``POST /v3/templates``: a new build of a name's template."""
        owner, body = self.owner(request), await body_of(request)
        name, _, tag = str(body["name"]).partition(":")
        tags = [*([tag] if tag else []), *(body.get("tags") or [])] or ["default"]
        identity = "t" + secrets.token_hex(10)
        base = self.cloud.templates["base"]
        template = replace(
            base, identity=identity, owner=owner, tree=self.cloud.home / identity, names={name},
            cpus=body.get("cpuCount", 2), memory_mb=body.get("memoryMB", 1024), mounts={},
        )  # fmt: skip
        build = Build(f"b{secrets.token_hex(10)}", template)
        self.builds[build.identity] = build
        answer = {"templateID": identity, "buildID": build.identity, "public": False, "names": [name], "tags": tags}
        return JSONResponse({**answer, "aliases": [name]}, status_code=202)

    async def list(self, request: Request) -> Response:
        """``GET /templates``."""
        owner = self.owner(request)
        return JSONResponse(
            [
                {
                    "templateID": one.identity, "buildID": one.identity, "cpuCount": one.cpus,
                    "memoryMB": one.memory_mb, "diskSizeMB": 10240, "public": not one.owner,
                    "aliases": sorted(one.names), "names": sorted(one.names), "createdAt": moment(time.time()),
                    "updatedAt": moment(time.time()), "createdBy": None, "lastSpawnedAt": None, "spawnCount": 0,
                    "buildCount": 1, "envdVersion": "0.6.13", "buildStatus": "ready",
                }
                for one in self.cloud.templates.values()
                if one.owner in ("", owner) and one.snapshot_of is None
            ]
        )  # fmt: skip

    async def alias(self, request: Request) -> Response:
        """``GET /templates/aliases/{alias}``."""
        template = self.cloud.template(request.path_params["alias"], self.owner(request))
        return JSONResponse({"templateID": template.identity, "public": not template.owner})

    async def upload_link(self, request: Request) -> Response:
        """Where files of this content go, unless they are here."""
        self.owner(request)
        name = request.path_params["hash"]
        present = self._upload(name).exists()
        return JSONResponse({"present": present, "url": f"{request.base_url}uploads/{name}"}, status_code=201)

    def _upload(self, name: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]+", name):
            raise RefusedError(400, "bad hash")
        return self.cloud.home / f"upload-{name}.tar"

    async def upload(self, request: Request) -> Response:
        """The tar stream of one COPY step. The link itself is the permission."""
        path = self._upload(request.path_params["hash"])
        with path.with_suffix(".part").open("wb") as file:
            async for piece in request.stream():
                file.write(piece)
        path.with_suffix(".part").rename(path)
        return Response(status_code=200)

    def _build(self, request: Request) -> Build:
        owner = self.owner(request)
        build = self.builds.get(request.path_params["build"])
        if build is None or build.template.owner != owner:
            raise RefusedError(404, "build not found")
        return build

    async def start(self, request: Request) -> Response:
        """``POST /v2/templates/{id}/builds/{b}``: run the steps."""
        build, body = self._build(request), await body_of(request)
        build.status = "building"
        task = asyncio.create_task(self._run(build, body))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return Response(status_code=202)

    async def status(self, request: Request) -> Response:
        """How far it is, and new lines of the log."""
        build = self._build(request)
        offset = int(request.query_params.get("logsOffset", 0))
        entries = build.log[offset : offset + LOG_PAGE]
        answer: dict[str, Any] = {
            "logs": [entry["message"] for entry in entries],
            "logEntries": entries,
            "templateID": build.template.identity,
            "buildID": build.identity,
            "status": build.status,
        }
        return JSONResponse({**answer, "reason": build.reason} if build.reason else answer)

    async def remove(self, request: Request) -> Response:
        """``DELETE /templates/{id}``: templates and snapshots."""
        template = self.cloud.template(request.path_params["id"], self.owner(request))
        if not template.owner:
            raise RefusedError(403, "not yours")
        await self.cloud.remove_template(template)
        return Response(status_code=204)

    async def _run(self, build: Build, body: dict[str, Any]) -> None:
        """All steps; the template is there when the last one succeeded."""
        step = ""
        template = build.template
        sandbox: Sandbox | None = None
        try:
            base = self.cloud.template(body.get("fromTemplate") or "base", template.owner)
            template.mounts = dict(base.mounts)
            template.variables = dict(base.variables)
            settings = Settings(template.identity, {}, dict(base.variables), {}, mounts=base.mounts)
            sandbox = await self.cloud.boot(template.owner, base.tree, settings, 3600)
            template.cwd, template.user = base.cwd or "/home/user", base.user
            for number, instruction in enumerate(body.get("steps") or []):
                step = str(number + 1)
                await self._step(build, sandbox, instruction)
            template.start_command = body.get("startCmd") or base.start_command
            await self.cloud.end_build(sandbox, template)
            build.say("Build finished")
            build.status = "ready"
        except Exception as error:
            build.say(str(error), "error")
            build.reason = {"message": str(error), "step": step}
            build.status = "error"
            if sandbox is not None:
                await self.cloud.kill(sandbox, "its build failed")

    async def _step(self, build: Build, sandbox: Sandbox, instruction: dict[str, Any]) -> None:
        """One step."""
        kind, args, template = instruction["type"], instruction.get("args") or [], build.template
        build.say(f"[builder] {kind} {' '.join(args)}")
        if kind == "ENV":
            template.variables.update(zip(args[::2], args[1::2], strict=True))
            sandbox.settings.variables = template.variables
        elif kind == "WORKDIR":
            template.cwd = args[0]
            await self._command(build, sandbox, f"mkdir -p '{args[0]}'", "root")
        elif kind == "USER":
            template.user = args[0]
        elif kind == "RUN":
            user = args[1] if len(args) > 1 and args[1] else template.user
            if NEEDS_NETWORK.search(args[0]):
                build.say("[double] taken as done: it needs the network, and this machine's /usr stands for it")
                if "claude-code" in args[0] and self.cloud.cli is not None:
                    template.mounts = {**template.mounts, CLI_INSIDE: self.cloud.cli}
            else:
                await self._command(build, sandbox, args[0], user)
        elif kind == "COPY":
            await self._copy(build, sandbox, instruction)
        else:
            raise RuntimeError(f"unknown step {kind}")

    async def _copy(self, build: Build, sandbox: Sandbox, instruction: dict[str, Any]) -> None:
        """Unpack what was uploaded, and put it where it belongs."""
        source, target, *rest = instruction["args"]
        owner, mode = (*rest, "", "")[:2]
        archive = self._upload(instruction["filesHash"])
        if not archive.exists():
            raise RuntimeError("the files of this step were not uploaded")
        assert sandbox.machine is not None
        _, (file,) = await sandbox.machine.ask("write", path="/tmp/.copied.tar", user="root", metadata={})
        with open(file, "wb") as inside, archive.open("rb") as outside:
            while piece := outside.read(1 << 20):
                inside.write(piece)
        script = (
            f"set -e; target='{target}'\n"
            "rm -rf /tmp/.copied; mkdir /tmp/.copied; tar -xf /tmp/.copied.tar -C /tmp/.copied\n"
            f"set -- /tmp/.copied/{source}\n"
            'case $#:$target in 1:*/) mkdir -p "$target";; 1:*) mkdir -p "$(dirname "$target")";;\n'
            '  *) mkdir -p "$target";; esac\n'
            'for one; do if [ -d "$one" ]; then mkdir -p "$target"; cp -a "$one/." "$target"; '
            'else cp -a "$one" "$target"; fi; done\n'
            + (f'chown -R {owner} "$target"\n' if owner else "")
            + (f'chmod -R {mode} "$target"\n' if mode else "")
            + "rm -rf /tmp/.copied /tmp/.copied.tar"
        )
        await self._command(build, sandbox, script, "root", cwd=build.template.cwd)

    async def _command(self, build: Build, sandbox: Sandbox, script: str, user: str, cwd: str = "") -> None:
        """Run one command to its end; its output goes to the log."""
        process = await sandbox.start(
            ["/bin/bash", "-l", "-c", script], user=user, cwd=cwd or "/", variables={}, stdin=False
        )
        subscriber = process.subscribe()
        process.run(process.pid)
        output = b""
        async for event in follow(subscriber, 60):
            if isinstance(event, Output):
                output += event.data
            elif isinstance(event, Cut):
                raise RuntimeError("the builder ended")
            elif isinstance(event, End) and event.exit_code != 0:
                raise RuntimeError(f"{script!r} failed ({event.status}): {output.decode(errors='replace')}")
        for line in output.decode(errors="replace").splitlines():
            build.say(line)
