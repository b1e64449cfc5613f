"""A gateway for tests: the real one on a real Unix socket, a ledger in memory, upstreams that misbehave on order."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx2

from server.clock import SYSTEM_CLOCK
from server.gateway import Gateway, Grant, PriceBook, Upstream
from server.gateway.listener import serve_app, unix_listener
from server.gateway.scripted import serve_scripted
from server.gateway.scripted.app import ScriptedApp
from server.gateway.upstream import Credential
from server.models import LedgerEntry, Usage

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

CANARY: Final = "sk-ant-canary-0123456789abcdef"
"""The credential in tests: it may reach the upstream and nothing else."""

MODEL: Final = "claude-sonnet-4-5"
PATIENCE_S: Final = 30.0


@dataclass
class MemoryLedger:
    """Keeps entries in a list; fails as often as it is told to."""

    entries: list[LedgerEntry] = field(default_factory=list)
    failures_left: int = 0
    attempts: int = 0

    async def record_request(self, entry: LedgerEntry) -> None:
        self.attempts += 1
        if self.failures_left:
            self.failures_left -= 1
            raise OSError("disk full")
        if entry.id not in {known.id for known in self.entries}:
            self.entries.append(entry)

    @property
    def usage(self) -> Usage:
        """The sum of all entries."""
        return sum((entry.usage for entry in self.entries), Usage())


@dataclass
class Seen:
    """A request as an upstream received it."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answerer = Callable[["Scope", "Receive", "Send", "Seen"], Any]


@dataclass
class FakeUpstream:
    """An upstream that records what it gets and answers what a test wants, byte for byte."""

    answer: Answerer
    seen: list[Seen] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        seen = Seen(scope["method"], scope["path"], scope["query_string"].decode(), headers, body)
        self.seen.append(seen)
        await self.answer(scope, receive, send, seen)


def replies(status: int, body: bytes | str | Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answerer:
    """Always the same complete response."""
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    head = {"content-type": "application/json", **(headers or {})}

    async def answer(_scope: Scope, _receive: Receive, send: Send, _seen: Seen) -> None:
        raw = [(name.encode(), value.encode()) for name, value in head.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    return answer


def streams(
    chunks: Iterable[bytes], *, until: anyio.Event | None = None, cut: bool = False, then: Iterable[bytes] = ()
) -> Answerer:
    """An event stream in these chunks; optionally waits in the midst, then ends properly or breaks off."""

    async def answer(_scope: Scope, _receive: Receive, send: Send, _seen: Seen) -> None:
        head = [(b"content-type", b"text/event-stream"), (b"request-id", b"req_1")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if until is not None:
            await until.wait()
        for chunk in then:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if not cut:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return answer


def event(kind: str, **fields: Any) -> bytes:
    """One server-sent event of the Messages API."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def opening(usage: Any, model: str = MODEL) -> bytes:
    """A ``message_start``."""
    return event("message_start", message={"id": "msg_1", "role": "assistant", "model": model, "usage": usage})


def delta(text: str) -> bytes:
    """A piece of text."""
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def closing(usage: Any) -> list[bytes]:
    """The end of a message with its final figures."""
    return [event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage), event("message_stop")]


@dataclass(frozen=True)
class GrantTerms:
    """What a policy says about the model: everything is allowed unless a test says otherwise."""

    server_tools: frozenset[str] = frozenset()
    models: str = "*"

    def permits_model(self, model: str) -> bool:
        return fnmatchcase(model, self.models)


@dataclass
class House:
    """A serving gateway with all that a test looks at."""

    gateway: Gateway
    ledger: MemoryLedger
    socket: Path

    def grant(self, session_id: str = "session-1", **features: Any) -> Grant:
        """A bound grant."""
        grant = self.gateway.open_grant()
        grant.bind(session_id=session_id, root_id=features.get("root_id", session_id), principal="local")
        grant.turn = 1
        terms = GrantTerms(frozenset(features.get("server_tools", ())), features.get("model_allowed", "*"))
        grant.terms = lambda: terms
        return grant

    def client(self, token: str, **headers: str) -> httpx2.AsyncClient:
        """What a sandbox has: the socket and a token."""
        transport = httpx2.AsyncHTTPTransport(uds=str(self.socket))
        return httpx2.AsyncClient(
            transport=transport, base_url="http://gateway", headers={"x-api-key": token, **headers}, timeout=PATIENCE_S
        )


def request(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """A model request."""
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **fields}


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[Path]:
    """An application on a Unix socket; what still runs at the end is cut off."""
    running: set[anyio.CancelScope] = set()

    async def cut_off(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.CancelScope() as one:
            running.add(one)
            await app(scope, receive, send)

    def stop() -> None:
        for one in running:
            one.cancel()

    with tempfile.TemporaryDirectory(prefix="rookery-test-") as directory:
        path = Path(directory) / "app.sock"
        async with anyio.create_task_group() as group:
            listener = unix_listener(path)

            async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                await serve_app(cut_off, listener, on_stop=stop, task_status=task_status)

            await group.start(run)
            yield path
            group.cancel_scope.cancel()


@asynccontextmanager
async def open_gateway(upstream: Upstream, **options: Any) -> AsyncIterator[House]:
    """A gateway before some upstream."""
    ledger = options.pop("ledger", None) or MemoryLedger()
    gateway = Gateway(
        upstream, ledger, options.pop("prices", PriceBook()), options.pop("clock", SYSTEM_CLOCK), **options
    )
    with tempfile.TemporaryDirectory(prefix="rookery-test-") as directory:
        socket = Path(directory) / "gateway.sock"
        async with anyio.create_task_group() as group:

            async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                await gateway.serve(socket, task_status=task_status)

            await group.start(run)
            yield House(gateway, ledger, socket)
            group.cancel_scope.cancel()


@asynccontextmanager
async def gateway_before(answer: Answerer, **options: Any) -> AsyncIterator[tuple[House, FakeUpstream]]:
    """A gateway before an upstream that answers on order."""
    fake = FakeUpstream(answer)
    secret = Credential("x-api-key", CANARY, CANARY)
    async with serving(fake) as path:
        upstream = Upstream("http://upstream.test", credential=lambda: secret, needs_credential=True, socket=path)
        async with open_gateway(upstream, **options) as house:
            yield house, fake


@asynccontextmanager
async def gateway_before_scripted(**options: Any) -> AsyncIterator[tuple[House, ScriptedApp]]:
    """A gateway before the scripted model."""
    with tempfile.TemporaryDirectory(prefix="rookery-test-") as directory:
        path = Path(directory) / "model.sock"
        async with anyio.create_task_group() as group:
            app: ScriptedApp = await group.start(serve_scripted, unix_listener(path))
            async with open_gateway(
                Upstream("http://scripted.model", socket=path, trust_env=False), **options
            ) as house:
                yield house, app
            group.cancel_scope.cancel()
