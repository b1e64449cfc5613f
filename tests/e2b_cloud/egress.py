"""The way out of a sandbox, as E2B makes it: what its network settings allow, with headers put in on the way.

A name that is allowed leads to this machine. Here TLS is opened with an authority of the cloud's own, which sandboxes
trust; the headers of the rules are put in, secrets and all; and the request goes on to where a test says that the host
is. Every other name leads nowhere.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import uvicorn
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.clock import Clock
from server.egress.authority import SandboxAuthority
from server.egress.trust import machine_authorities
from tests.e2b_cloud.machine import Machine

CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
HOSTS: Final = "/etc/hosts"
LOOPBACK: Final = "127.0.0.1"
HTTPS: Final = 443

PLACEHOLDER: Final = re.compile(r"\$\{e2b\.secrets\.([^}]+)\}")
ON_THIS_LEG: Final = {"host", "connection", "content-length", "transfer-encoding", "keep-alive"}
"""Headers that are not passed on."""


@dataclass
class Secret:
    """A secret of an account."""

    identity: str
    name: str
    value: str
    made: float = field(default_factory=time.time)


class Egress:
    """The ways out of all sandboxes.

    Args:
        home: a directory for what sandboxes are shown of it.
    """

    def __init__(self, home: Path) -> None:
        self.upstreams: dict[str, str] = {}
        """Where hosts really are: name → URL."""
        self.secrets: dict[tuple[str, str], Secret] = {}
        """By account and name."""
        self._home = home
        self._authority: SandboxAuthority | None = None

    @property
    def authority(self) -> SandboxAuthority:
        """Made when it is needed first, for that takes a while."""
        if self._authority is None:
            self._authority = SandboxAuthority(Clock())
            (self._home / "authorities.pem").write_bytes(machine_authorities() + b"\n" + self._authority.pem)
        return self._authority

    def shown(self, identity: str, network: Mapping[str, Any]) -> dict[str, Path]:
        """What a sandbox with these settings has in place of its own files."""
        hosts = network.get("allowOut") or []
        if not hosts:
            return {}
        assert self.authority
        file = self._home / f"{identity}.hosts"
        file.write_text("".join(f"{LOOPBACK} {host}\n" for host in ("localhost", *hosts)))
        return {HOSTS: file, CERTIFICATES: self._home / "authorities.pem"}

    async def open(self, owner: str, network: Mapping[str, Any], machine: Machine) -> Opening | None:
        """Let a machine's requests out, as far as its settings allow any."""
        hosts = network.get("allowOut") or []
        if not hosts:
            return None
        _, (descriptor,) = await machine.ask("listen", address=LOOPBACK, port=HTTPS)
        return Opening(self, owner, network, socket.socket(fileno=descriptor))

    def filled(self, owner: str, text: str) -> str:
        """A header's value with the secrets that it names.

        Raises:
            KeyError: there is none of that name.
        """
        return PLACEHOLDER.sub(lambda found: self.secrets[owner, found[1]].value, text)


class Opening:
    """One sandbox's way out, from now until it is closed."""

    def __init__(self, egress: Egress, owner: str, network: Mapping[str, Any], listener: socket.socket) -> None:
        self._egress = egress
        self._owner = owner
        self._network = network
        self._client = httpx2.AsyncClient(trust_env=False, timeout=600)
        config = uvicorn.Config(
            self._app, log_level=logging.CRITICAL, interface="asgi3", lifespan="off", access_log=False
        )
        config.load()
        config.ssl = self._context()
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._serving = asyncio.create_task(self._server.serve([listener]))

    def _context(self) -> ssl.SSLContext:
        authority, allowed = self._egress.authority, self._network["allowOut"]
        context = authority.context_for(allowed[0])

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> int | None:
            if name is None or name not in allowed:
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            connection.context = authority.context_for(name)
            return None

        context.sni_callback = choose
        return context

    async def close(self) -> None:
        """Nothing gets out any more."""
        self._server.should_exit = self._server.force_exit = True
        with suppress(Exception):
            await self._serving
        await self._client.aclose()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await self._answer(Request(scope, receive)))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        host = request.url.hostname or ""
        upstream = self._egress.upstreams.get(host)
        if host not in self._network["allowOut"] or upstream is None:
            return PlainTextResponse("the host cannot be reached", 502)
        headers = {name: value for name, value in request.headers.items() if name not in ON_THIS_LEG}
        for rule in (self._network.get("rules") or {}).get(host, []):
            for name, value in rule["transform"]["headers"].items():
                try:
                    headers[name.lower()] = self._egress.filled(self._owner, value)
                except KeyError as error:
                    return PlainTextResponse(f"no secret {error}", 502)
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        forward = self._client.build_request(
            request.method, upstream + path, headers=headers, content=await request.body()
        )
        try:
            answer = await self._client.send(forward, stream=True)
        except httpx2.TransportError as error:
            return PlainTextResponse(f"the host cannot be reached: {error}", 502)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in ON_THIS_LEG}
        return StreamingResponse(pieces(answer), answer.status_code, kept, background=BackgroundTask(answer.aclose))


async def pieces(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """A body as it comes."""
    async for piece in answer.aiter_raw():
        yield piece
