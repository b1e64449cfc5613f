"""A stand-in for the paid API that keeps books of its own: the scripted model behind a loopback address, which fails on
order and adds up what it truly used, apart from all that Rookery meters."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from server.gateway.listener import loopback_listener, serve_app
from server.gateway.refusals import error_body
from server.gateway.scripted.answers import ScriptedModel
from server.gateway.scripted.app import ScriptedApp
from server.models import Usage

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send


@dataclass
class Refused:
    """An error instead of an answer."""

    status: int
    kind: str = "overloaded_error"
    headers: Mapping[str, str] = field(default_factory=lambda: {"x-should-retry": "false"})


Failing = Callable[[Mapping[str, Any]], Refused | None]


@dataclass
class PaidApi:
    """What the API did.

    Args:
        failing: says of each request whether it fails.
    """

    failing: Failing = lambda _body: None
    url: str = ""
    used: list[tuple[str, Usage]] = field(default_factory=list)
    """Model and usage of each answer that was sent to its end, by the figures that were sent."""
    requests: list[Mapping[str, Any]] = field(default_factory=list)
    cut: int = 0
    """Answers that broke off."""
    refused: int = 0
    _app: ScriptedApp = field(default_factory=lambda: ScriptedApp(ScriptedModel()))

    @property
    def total(self) -> Usage:
        """All that was used by whole answers."""
        return sum((usage for _, usage in self.used), Usage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/messages":
            await self._app(scope, receive, send)
            return
        content, more = b"", True
        while more:
            message = await receive()
            content, more = content + message.get("body", b""), message.get("more_body", False)
        body = json.loads(content)
        self.requests.append(body)
        failure = self.failing(body)
        if failure is not None:
            self.refused += 1
            await _refuse(send, failure)
            return
        sent = bytearray()
        delivered = False

        async def given() -> Message:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": content, "more_body": False}

        async def tee(message: Message) -> None:
            sent.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, given, tee)
        self._note(str(body.get("model")), bytes(sent))

    def _note(self, model: str, sent: bytes) -> None:
        """Add up by the figures as they were sent; written without a look at how Rookery reads them."""
        figures: dict[str, int] = {}
        ended = False
        for line in sent.split(b"\n"):
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                usage = event.get("message", event).get("usage") or {}
                figures |= {name: count for name, count in usage.items() if isinstance(count, int)}
                ended = ended or event["type"] == "message_stop"
        if not ended:
            self.cut += 1
            return
        usage = Usage(
            input_tokens=figures.get("input_tokens", 0),
            output_tokens=figures.get("output_tokens", 0),
            cache_read_tokens=figures.get("cache_read_input_tokens", 0),
            cache_write_tokens=figures.get("cache_creation_input_tokens", 0),
        )
        self.used.append((model, usage))


async def _refuse(send: Send, failure: Refused) -> None:
    headers = [(name.encode(), value.encode()) for name, value in failure.headers.items()]
    body = error_body(failure.kind, "The stand-in was told to fail.")
    head = [(b"content-type", b"application/json"), *headers]
    await send({"type": "http.response.start", "status": failure.status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@asynccontextmanager
async def paid_api(failing: Failing | None = None) -> AsyncIterator[PaidApi]:
    """The API on a free port of the loopback."""
    api = PaidApi(failing) if failing is not None else PaidApi()
    listener = loopback_listener()
    api.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with anyio.create_task_group() as group:

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            await serve_app(api, listener, task_status=task_status)

        await group.start(run)
        yield api
        group.cancel_scope.cancel()


def settings_of(api: PaidApi) -> dict[str, Any]:
    """Settings of a house that pays it."""
    return {"upstream": "anthropic", "anthropic_base_url": api.url, "anthropic_api_key": "sk-ant-stand-in"}


def times(count: int, failure: Refused) -> Failing:
    """Fails the first so many requests."""
    left = count

    def failing(_body: Mapping[str, Any]) -> Refused | None:
        nonlocal left
        left -= 1
        return failure if left >= 0 else None

    return failing
