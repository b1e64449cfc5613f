"""Makes a request smaller, so that what is left of a budget covers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

LEAST_VISIBLE: Final = 2_048
"""Output tokens without which an agent's request is of no use: fewer do not hold a tool call with a small file."""

LEAST_THINKING: Final = 1_024
"""The least ``budget_tokens`` that the Messages API takes."""


def with_output(body: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """The request with at most so many output tokens.

    ``thinking.budget_tokens`` must stay below ``max_tokens``: it gives way first, down to its least, and then goes
    altogether, with the context edits that only make sense beside it. Adaptive thinking has no figure of its own.
    """
    result = dict(body) | {"max_tokens": max_tokens}
    thinking = body.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
    if not isinstance(budget, int) or not isinstance(thinking, Mapping):
        return result
    room = max_tokens - LEAST_VISIBLE
    if room >= LEAST_THINKING:
        result["thinking"] = dict(thinking) | {"budget_tokens": min(budget, room)}
        return result
    return without_thinking(result)


def without_thinking(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request without thinking and the context edits that only make sense beside it."""
    result = {name: value for name, value in body.items() if name != "thinking"}
    management = body.get("context_management")
    if isinstance(management, Mapping) and isinstance(edits := management.get("edits"), list):
        kept = [edit for edit in edits if not _is_about_thinking(edit)]
        result["context_management"] = dict(management) | {"edits": kept}
    return result


def _is_about_thinking(edit: object) -> bool:
    return isinstance(edit, Mapping) and str(edit.get("type")).startswith("clear_thinking")
