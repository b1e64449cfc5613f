"""The transport believes nothing that comes out of a sandbox."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from claude_agent_sdk import ProcessError
from hypothesis import given
from hypothesis import strategies as st

from server.agent.transport import AgentProtocolError, LineFramer, SandboxTransport

SESSION = "0b9d1a52-1c1f-4a3c-9a34-7d5f4f0f8a11"
OTHER = "0b9d1a52-1c1f-4a3c-9a34-7d5f4f0f8a12"


class PlayedProcess:
    """An agent process that says what it is told to say, then ends."""

    def __init__(self, chunks: Sequence[bytes], exit_code: int = 0) -> None:
        self._chunks = list(chunks)
        self._exit_code = exit_code
        self.returncode: int | None = None
        self.input_closed = False
        self.terminated = False

    async def write(self, data: bytes) -> None:
        if self.returncode is not None:
            raise anyio.BrokenResourceError

    async def read(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        return self._chunks.pop(0) if self._chunks else b""

    async def close_input(self) -> None:
        self.input_closed = True

    def stderr_tail(self) -> str:
        return "last words"

    async def wait(self) -> int:
        self.returncode = self._exit_code
        return self._exit_code

    async def terminate(self) -> None:
        self.terminated = True
        self.returncode = self._exit_code


async def frames(*chunks: bytes, exit_code: int = 0) -> list[dict[str, Any]]:
    transport = await connected(PlayedProcess(chunks, exit_code))
    return [frame async for frame in transport.read_messages()]


async def connected(process: PlayedProcess) -> SandboxTransport:
    async def start() -> PlayedProcess:
        return process

    transport = SandboxTransport(start, SESSION)
    await transport.connect()
    return transport


def line(**frame: Any) -> bytes:
    return json.dumps(frame).encode() + b"\n"


def mirror(path: Any, entries: Any) -> bytes:
    return line(type="transcript_mirror", filePath=path, entries=entries)


@given(st.lists(st.binary(max_size=30).filter(lambda part: b"\n" not in part), max_size=8), st.data())
def test_lines_come_out_whole_however_the_stream_is_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(part + b"\n" for part in lines)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=6)))
    edges = [0, *cuts, len(stream)]
    framer = LineFramer()
    out = [got for start, end in itertools.pairwise(edges) for got in framer.push(stream[start:end])]
    assert out == lines


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    framer = LineFramer(limit=1_000)
    with pytest.raises(AgentProtocolError):
        for _ in range(100):
            framer.push(b"x" * 100)
            assert framer._held <= 1_100


async def test_an_end_of_output_that_nobody_asked_for_is_a_process_error() -> None:
    transport = await connected(PlayedProcess([line(type="system")], exit_code=137))
    with pytest.raises(ProcessError) as caught:
        async for _ in transport.read_messages():
            pass
    assert caught.value.exit_code == 137


async def test_an_end_of_output_after_the_end_of_input_is_no_error() -> None:
    transport = await connected(PlayedProcess([line(type="system")]))
    await transport.end_input()
    assert [frame["type"] async for frame in transport.read_messages()] == ["system"]


@pytest.mark.parametrize(
    "forged",
    [
        b'{"type": "result", broken\n',
        b'{"type": 3}\n',
        b'{"no": "type"}\n',
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"\n",
        line(type="result", session_id=OTHER),
        line(type="control_request", request_id="1", request="not an object"),
        line(type="control_request", request={"subtype": "can_use_tool"}),
        line(type="control_response", response=None),
        mirror(f"/home/agent/.claude/projects/-workspace/{OTHER}.jsonl", []),
        mirror(f"/home/agent/.claude/projects/-workspace/{SESSION}/../{OTHER}.jsonl", []),
        mirror(None, []),
        mirror(f"/home/agent/.claude/projects/-workspace/{SESSION}.jsonl", "entries"),
        mirror(f"/home/agent/.claude/projects/-workspace/{SESSION}.jsonl", ["entry"]),
    ],
)
async def test_a_malformed_or_foreign_frame_ends_the_reading(forged: bytes) -> None:
    with pytest.raises(AgentProtocolError):
        await frames(forged)


async def test_lines_that_are_no_objects_are_passed_over_but_not_for_ever() -> None:
    transport = await connected(PlayedProcess([b"warning: odd\n\xff\xfe\n", line(type="system")]))
    await transport.end_input()
    assert [frame["type"] async for frame in transport.read_messages()] == ["system"]
    with pytest.raises(AgentProtocolError):
        await frames(b"noise\n" * 2_000)


async def test_close_ends_the_input_first_and_always_terminates_the_tree() -> None:
    process = PlayedProcess([])
    transport = await connected(process)
    await transport.close()
    assert process.input_closed
    assert process.terminated


async def test_a_write_to_a_dead_agent_is_a_process_error() -> None:
    process = PlayedProcess([])
    transport = await connected(process)
    await process.wait()
    with pytest.raises(ProcessError):
        await transport.write("x\n")
