"""Another model in the place of one that is overloaded: which, and how a request must change for it.

The operator names the models (``ROOKERY_FALLBACK_MODELS``); the session's policy must permit the one that is taken. An
agent keeps the model that it asked for: each request falls back on its own, for as long as that model's lane is shut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from server.gateway.fitting import without_thinking
from server.gateway.requests import write_json

if TYPE_CHECKING:
    from server.gateway.grants import Terms
    from server.gateway.requests import Outbound

_OWN_BETAS: Final = ("context-1m", "effort", "interleaved-thinking", "context-management", "redact-thinking")
"""Beginnings of betas that belong to one model's abilities."""


def substitutes(outbound: Outbound, models: Sequence[str], terms: Terms) -> Iterable[str]:
    """The models that may answer in the place of the one asked for, in the operator's order."""
    return [model for model in models if model != outbound.model and terms.permits_model(model)]


def with_model(outbound: Outbound, model: str) -> Outbound:
    """The request for another model.

    Thinking goes: its blocks are signed for the model that thought them, and not every model thinks in the same way.
    So does the effort, which is a setting of the model asked for.
    """
    body = without_thinking(outbound.body) | {"model": model}
    config = body.get("output_config")
    if isinstance(config, Mapping) and "effort" in config:
        body["output_config"] = {name: value for name, value in config.items() if name != "effort"}
    messages = body.get("messages")
    if isinstance(messages, list):
        body["messages"] = [kept for message in messages if (kept := _without_thoughts(message)) is not None]
    headers = dict(outbound.headers)
    betas = [one for one in headers.pop("anthropic-beta", "").split(",") if one and not one.startswith(_OWN_BETAS)]
    if betas:
        headers["anthropic-beta"] = ",".join(betas)
    return dataclasses.replace(outbound, body=body, content=write_json(body), headers=headers, model=model)


def _without_thoughts(message: Any) -> Any:
    """A message without blocks of thinking; None when it held nothing else."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list) or message.get("role") != "assistant":
        return message
    kept = [block for block in content if not (isinstance(block, Mapping) and "thinking" in str(block.get("type")))]
    return {**message, "content": kept} if kept else None
