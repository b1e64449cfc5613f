"""The scripted model as a server that speaks the Messages API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import anyio

from server.gateway.refusals import ERROR_STATUS, JSON, error_body
from server.gateway.scripted.answers import Answer, ScriptedModel, tokens_in
from server.gateway.scripted.scenario import Step
from server.gateway.scripted.sending import ConnectionCutError, document, events

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

MODEL_PREFIX: Final = "claude-"
"""Models that the scripted model stands in for; any other name is unknown to it, as to the real API."""

_MODELS: Final = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5")


class ScriptedApp:
    """An ASGI application around a :class:`ScriptedModel`."""

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model
        self.requests: list[Mapping[str, Any]] = []
        """Bodies of the latest model requests, oldest first, for tests; at most 200."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", "/v1/models"):
            models = [{"type": "model", "id": name, "display_name": name} for name in _MODELS]
            await _send(send, 200, json.dumps({"data": models, "has_more": False}).encode())
            return
        if method != "POST" or path not in ("/v1/messages", "/v1/messages/count_tokens"):
            await _send(send, 404, error_body("not_found_error", f"{method} {path} is nothing the model serves."))
            return
        try:
            body = json.loads(await _body(receive))
        except ValueError:
            await _send(send, 400, error_body("invalid_request_error", "The body is not JSON."))
            return
        if path.endswith("count_tokens"):
            count = tokens_in([body.get("system"), body.get("tools"), body.get("messages")])
            await _send(send, 200, json.dumps({"input_tokens": count}).encode())
            return
        await self._message(body, receive, send)

    async def _message(self, body: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.requests.append(body)
        del self.requests[:-200]
        if not str(body.get("model")).startswith(MODEL_PREFIX):
            await _send(send, 404, error_body("not_found_error", f"model: {body.get('model')}"))
            return
        answer = self._model.answer(body)
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
            await anyio.sleep(answer.opening_delay_s)
            if answer.failure is not None and answer.failure.error is not None:
                await _send_error(send, answer.failure)
            elif body.get("stream") is True:
                await _send_events(send, answer)
            else:
                await _send_document(send, answer)
            group.cancel_scope.cancel()


async def _send_events(send: Send, answer: Answer) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"request-id", _request_id(answer.id))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        async for event in events(answer):
            await send({"type": "http.response.body", "body": event, "more_body": True})
    except ConnectionCutError:
        # Returning in the midst of a body makes the HTTP server break the connection.
        return
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_document(send: Send, answer: Answer) -> None:
    failure = answer.failure
    if failure is not None and failure.error_event is not None:
        message = failure.message or f"The scenario sends {failure.error_event}."
        await _send(send, ERROR_STATUS.get(failure.error_event, 500), error_body(failure.error_event, message))
    elif failure is not None:
        # A head without its body makes the HTTP server break the connection.
        length = (b"content-length", b"1000")
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", JSON.encode()), length]}
        )
    else:
        await _send(send, 200, document(answer), answer.id)


async def _send_error(send: Send, failure: Step) -> None:
    status = failure.error or 500
    kind = failure.error_type or next((name for name, code in ERROR_STATUS.items() if code == status), "api_error")
    headers: list[tuple[bytes, bytes]] = []
    if failure.retry_after is not None:
        headers.append((b"retry-after", f"{failure.retry_after:g}".encode()))
    if failure.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if failure.should_retry else b"false"))
    message = failure.message or f"The scenario answers with {status}."
    await _send(send, status, error_body(kind, message), headers=headers)


async def _send(
    send: Send, status: int, body: bytes, identity: str = "", headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    head = [(b"content-type", JSON.encode()), (b"content-length", str(len(body)).encode()), *(headers or [])]
    if identity:
        head.append((b"request-id", _request_id(identity)))
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _request_id(identity: str) -> bytes:
    return identity.replace("msg_", "req_", 1).encode()


async def _body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
