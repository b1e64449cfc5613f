"""Puts an answer on the wire as the Messages API does: as an event stream, or as one document."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import anyio

from server.gateway.refusals import error_body
from server.gateway.scripted.answers import Answer, Block

_PIECE: Final = re.compile(r"\S*\s*")
WORDS_IN_A_DELTA: Final = 6
JSON_IN_A_DELTA: Final = 400


class ConnectionCutError(Exception):
    """The scenario wants the connection to break here."""


def document(answer: Answer) -> bytes:
    """A message as one JSON document."""
    message = _opening(answer) | {
        "content": [_content(answer, index, block, block.text) for index, block in enumerate(answer.blocks)],
        "stop_reason": answer.stop_reason,
        "usage": dict(answer.usage),
    }
    return json.dumps(message).encode()


async def events(answer: Answer) -> AsyncIterator[bytes]:
    """A message as server-sent events, at the pace that its blocks want.

    Raises:
        ConnectionCutError: the scenario cuts the stream here.
    """
    opening = _opening(answer)
    opening["usage"] = dict(answer.usage) | ({"output_tokens": 1} if "output_tokens" in answer.usage else {})
    yield _event("message_start", message=opening)
    for index, block in enumerate(answer.blocks):
        await anyio.sleep(block.delay_s)
        yield _event("content_block_start", index=index, content_block=_content(answer, index, block, ""))
        for piece in _pieces(block):
            if block.token_delay_s:
                await anyio.sleep(block.token_delay_s)
            yield _event("content_block_delta", index=index, delta=_delta(block, piece))
        if block.kind == "thinking":
            yield _event("content_block_delta", index=index, delta={"type": "signature_delta", "signature": "c2NyaXB0"})
        yield _event("content_block_stop", index=index)
    await anyio.sleep(answer.closing_delay_s)
    if answer.failure is not None and answer.failure.error_event is not None:
        kind = answer.failure.error_event
        body = error_body(kind, answer.failure.message or f"The scenario sends {kind}.")
        yield b"event: error\ndata: " + body + b"\n\n"
        return
    if answer.failure is not None and answer.failure.cut:
        raise ConnectionCutError
    ending: dict[str, Any] = {"delta": {"stop_reason": answer.stop_reason, "stop_sequence": None}}
    if answer.usage:
        ending["usage"] = dict(answer.usage)
    yield _event("message_delta", **ending)
    yield _event("message_stop")


def _opening(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _content(answer: Answer, index: int, block: Block, text: str) -> dict[str, Any]:
    match block.kind:
        case "tool_use":
            identity = f"toolu_{answer.id[4:24]}{index:02d}"
            return {"type": "tool_use", "id": identity, "name": block.tool, "input": json.loads(text or "{}")}
        case "thinking":
            return {"type": "thinking", "thinking": text, "signature": ""}
        case _:
            return {"type": "text", "text": text}


def _pieces(block: Block) -> list[str]:
    if block.kind == "tool_use":
        return [block.text[at : at + JSON_IN_A_DELTA] for at in range(0, len(block.text), JSON_IN_A_DELTA)]
    words = [word for word in _PIECE.findall(block.text) if word]
    step = 1 if block.token_delay_s else WORDS_IN_A_DELTA
    return ["".join(words[at : at + step]) for at in range(0, len(words), step)]


def _delta(block: Block, piece: str) -> Mapping[str, str]:
    match block.kind:
        case "tool_use":
            return {"type": "input_json_delta", "partial_json": piece}
        case "thinking":
            return {"type": "thinking_delta", "thinking": piece}
        case _:
            return {"type": "text_delta", "text": piece}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
