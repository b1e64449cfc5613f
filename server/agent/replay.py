"""Taking over an agent that another host started: what of its output and input is repeated, and what must not be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from claude_agent_sdk import ClaudeSDKError


class Placed(dict[str, Any]):
    """A transcript entry that knows where in the agent's output it stood: one that comes again is known by that.

    Args:
        place: names it, for entries that have no ``uuid``.
    """

    def __init__(self, entry: dict[str, Any], place: str) -> None:
        super().__init__(entry)
        self.place = place


def answered_requests(told: bytes) -> frozenset[str]:
    """Ids of the agent's questions that a host has answered.

    Args:
        told: what it wrote to the agent.
    """
    found = set[str]()
    for frame in _frames(told):
        response = frame.get("response")
        if frame.get("type") == "control_response" and isinstance(response, dict):
            found.add(str(response.get("request_id")))
    return frozenset(found)


def was_prompted(told: bytes, message_id: str) -> bool:
    """Whether a host has sent a prompt.

    Args:
        told: what it wrote to the agent.
        message_id: the prompt's.
    """
    return any(frame.get("type") == "user" and frame.get("uuid") == message_id for frame in _frames(told))


def _frames(told: bytes) -> Iterator[dict[str, Any]]:
    for line in told.split(b"\n"):
        try:
            frame = json.loads(line)
        except ValueError:
            continue
        if isinstance(frame, dict):
            yield frame


def initialised(data: str) -> dict[str, Any]:
    """The answer to a request to initialise an agent that is initialised already.

    Raises:
        ClaudeSDKError: this is no such request.
    """
    try:
        request = json.loads(data)
        asked, request_id = request["request"]["subtype"], request["request_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise ClaudeSDKError("an agent that is taken over must be initialised first") from error
    if asked != "initialize":
        raise ClaudeSDKError("an agent that is taken over must be initialised first")
    answer = {"hook_on_failure_supported": True, "hooks_applied": True}
    return {
        "type": "control_response",
        "response": {"subtype": "success", "request_id": request_id, "response": answer},
    }
