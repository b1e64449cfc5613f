"""Taking over an agent that another server started: nothing is asked twice, answered twice or stored twice."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from claude_agent_sdk import ClaudeSDKError

from server.agent.replay import answered_requests, was_prompted
from server.agent.transport import SandboxTransport
from server.sandboxes.base import CONFIG_DIR

SESSION = "6f1c2a54-0d0a-4f7e-9f5c-0d2b8a3f7f10"


def lines(*frames: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(frame).encode() + b"\n" for frame in frames)


class Survivor:
    """A process whose output begins in the midst of its life."""

    returncode = None
    keepsake: Any = None

    def __init__(self, output: bytes, told: bytes, position: int) -> None:
        self._chunks = [output[start : start + 50] for start in range(0, len(output), 50)]
        self.told = told
        self.position = position
        self.written: list[bytes] = []
        self.settled: list[int] = []
        self.admitted = False

    async def read(self) -> bytes:
        if not self._chunks:
            await anyio.sleep_forever()
        self.position += len(self._chunks[0])
        return self._chunks.pop(0)

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    def admit(self) -> None:
        self.admitted = True

    def settle(self, position: int) -> None:
        self.settled.append(position)


def question(request_id: str) -> dict[str, Any]:
    return {"type": "control_request", "request_id": request_id, "request": {"subtype": "hook_callback"}}


def answer(request_id: str) -> dict[str, Any]:
    return {"type": "control_response", "response": {"subtype": "success", "request_id": request_id}}


INITIALIZE = json.dumps({"type": "control_request", "request_id": "req_1", "request": {"subtype": "initialize"}}) + "\n"


async def taken_over(survivor: Survivor, count: int) -> tuple[SandboxTransport, list[dict[str, Any]]]:
    """A connected transport, and the first frames that it gives once it was asked to initialise."""

    async def never() -> Any:
        raise AssertionError("it runs already")

    transport = SandboxTransport(never, SESSION, stream="stream_1", survived=survivor)  # type: ignore[arg-type]
    await transport.connect()
    await transport.write(INITIALIZE)
    frames: list[dict[str, Any]] = []
    with anyio.fail_after(10):
        async for frame in transport.read_messages():
            frames.append(frame)
            if len(frames) == count:
                break
    return transport, frames


async def test_it_is_not_initialised_again_and_its_connections_are_let_through() -> None:
    survivor = Survivor(b"", b"", 0)
    _, (greeting,) = await taken_over(survivor, 1)
    assert greeting["response"]["request_id"] == "req_1"
    assert greeting["response"]["response"]["hook_on_failure_supported"] is True
    assert survivor.written == []
    assert survivor.admitted


async def test_a_question_that_was_answered_is_not_asked_again_and_an_open_one_is() -> None:
    output = lines(question("old"), question("open"), {"type": "system", "uuid": "u", "subtype": "x"})
    survivor = Survivor(output, lines({"type": "user", "uuid": "p"}, answer("old")), 1000)
    transport, frames = await taken_over(survivor, 3)
    assert [frame.get("request_id") or frame["type"] for frame in frames[1:]] == ["open", "system"]
    assert transport.position_of("u") == 1000 + len(output)
    await transport.write("{}\n")
    assert survivor.written == [b"{}\n"]


async def test_transcript_entries_are_known_by_their_place_whoever_hears_them() -> None:
    mirror = {
        "type": "transcript_mirror",
        "filePath": f"{CONFIG_DIR}/projects/-workspace/{SESSION}.jsonl",
        "entries": [{"type": "mode"}, {"type": "title"}],
    }
    places = []
    for position, output in ((0, lines({"type": "x"}, mirror)), (len(lines({"type": "x"})), lines(mirror))):
        _, frames = await taken_over(Survivor(output, b"", position), 3 if position == 0 else 2)
        places.append([entry.place for entry in frames[-1]["entries"]])
    assert places[0] == places[1]
    assert len(set(places[0])) == 2


async def test_something_else_than_a_request_to_initialise_comes_first_in_no_case() -> None:
    survivor = Survivor(b"", b"", 0)

    async def never() -> Any:
        raise AssertionError("it runs already")

    transport = SandboxTransport(never, SESSION, stream="stream_1", survived=survivor)  # type: ignore[arg-type]
    await transport.connect()
    with pytest.raises(ClaudeSDKError):
        await transport.write('{"type": "user"}\n')


def test_what_a_server_told_an_agent_is_read_line_by_line_and_junk_is_passed_over() -> None:
    told = b"junk\n" + lines({"type": "user", "uuid": "p1"}, answer("a"), answer("b")) + b'["list"]\n'
    assert answered_requests(told) == {"a", "b"}
    assert was_prompted(told, "p1")
    assert not was_prompted(told, "p2")
