"""MCP over the process's standard streams, as the server's end of it.

The SDK's own transport reads lines of any length into memory, drops what it cannot parse without a word, and leaves
a thread in ``read(0)`` that keeps the process from ending. Here a message has a longest length, every fault is
answered in JSON-RPC's form, and waiting is done by the event loop, so that a signal ends it at once.

While serving, descriptor 0 is the null device and descriptor 1 is stderr: a stray ``print`` or a child's output can
neither enter the protocol nor read from it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PARSE_ERROR,
    JSONRPCNotification,
    JSONRPCRequest,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from rookery.serving.underway import Underway

MAX_MESSAGE_BYTES: Final = 16 << 20
"""Longest message: room for the longest prompt and system prompt in the worst JSON escaping, and for files beside."""

_CHUNK: Final = 65_536
"""Bytes read at once."""

_WRITE_CHUNK: Final = 4_096
"""A descriptor reported writable takes this much without blocking (POSIX: PIPE_BUF)."""

_FLUSH_S: Final = 2.0
"""How long the last answers may take to be written once the server has ended."""

_EDGE: Final = 512
"""Bytes kept of each end of a message that is too long, to find the id that its answer must carry."""

_ID_AT_START: Final = re.compile(
    rb'^\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(-?\d{1,18}|"[^"\\]{0,200}")\s*,'
)
_ID_AT_END: Final = re.compile(rb'[,{]\s*"id"\s*:\s*(-?\d{1,18}|"[^"\\]{0,200}")\s*\}\s*$')


@dataclass(frozen=True)
class TooLong:
    """Stands for a message that was longer than allowed; only its two ends were kept."""

    head: bytes
    tail: bytes
    size: int


class LineFramer:
    """Cuts chunks into lines in bounded memory: an overlong line is counted and skipped, not kept."""

    def __init__(self, max_line: int) -> None:
        self._max_line = max_line
        self._parts: list[bytes] = []
        self._size = 0
        self._head = b""
        self._tail = b""

    def feed(self, chunk: bytes) -> Iterator[bytes | TooLong]:
        """Take a chunk; the lines it completes, without their ends."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._keep(chunk[start:end])
            yield self._take()
            start = end + 1
        self._keep(chunk[start:])

    def finish(self) -> Iterator[bytes | TooLong]:
        """The last line, when the input ended without a line end."""
        if self._size:
            yield self._take()

    def _keep(self, part: bytes) -> None:
        if not part:
            return
        self._size += len(part)
        if self._size <= self._max_line:
            self._parts.append(part)
            return
        # From here on only the two ends are kept; what had been gathered is their beginning.
        seen = b"".join([*self._parts, part])
        self._parts.clear()
        self._head = (self._head + seen[:_EDGE])[:_EDGE]
        self._tail = (self._tail + seen)[-_EDGE:]

    def _take(self) -> bytes | TooLong:
        too_long = self._size > self._max_line
        line = TooLong(self._head, self._tail, self._size) if too_long else b"".join(self._parts)
        self._parts, self._size, self._head, self._tail = [], 0, b"", b""
        return line


@dataclass(frozen=True)
class Wire:
    """The private descriptors that carry the protocol."""

    incoming: int
    outgoing: int


@contextmanager
def claimed_wire() -> Iterator[Wire]:
    """Take the standard streams for the protocol alone; hold it for as long as anything might print."""
    with (
        _moved(0, os.open(os.devnull, os.O_RDONLY)) as incoming,
        _moved(1, os.dup(2)) as outgoing,
        redirect_stdout(sys.stderr),
    ):
        yield Wire(incoming, outgoing)


@contextmanager
def _moved(descriptor: int, diversion: int) -> Iterator[int]:
    """Move a standard stream to a private descriptor and put ``diversion`` in its place."""
    private = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        os.dup2(diversion, descriptor)
        os.close(diversion)
        yield private
    finally:
        os.dup2(private, descriptor)
        os.close(private)


@asynccontextmanager
async def stdio_transport(
    wire: Wire, answered: anyio.Event, *, max_message: int = MAX_MESSAGE_BYTES
) -> AsyncIterator[
    tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]
]:
    """Messages from and to the wire while the context lasts.

    Args:
        answered: set once the first message has been written: the client has its answer to ``initialize``.
        max_message: longest message in bytes; a longer one is refused, and the next is read as if nothing was.
    """
    incoming, read_stream = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write_stream, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    writer, underway, flushed = _Writer(wire.outgoing), Underway(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_read, wire.incoming, incoming, writer, underway, max_message)
        tasks.start_soon(_write, outgoing, writer, underway, answered, flushed)
        yield read_stream, write_stream
        # The server closed its end, so the writer is done as soon as the last answer is out.
        with anyio.move_on_after(_FLUSH_S):
            await flushed.wait()
        tasks.cancel_scope.cancel()


async def _read(
    descriptor: int,
    incoming: MemoryObjectSendStream[SessionMessage | Exception],
    writer: _Writer,
    underway: Underway,
    max_message: int,
) -> None:
    framer = LineFramer(max_message)
    async with incoming:
        first = True
        while chunk := await _read_chunk(descriptor):
            if first:
                chunk, first = chunk.removeprefix(b"\xef\xbb\xbf"), False
            for line in framer.feed(chunk):
                await _deliver(line, incoming, writer, underway, max_message)
        for line in framer.finish():
            await _deliver(line, incoming, writer, underway, max_message)


async def _deliver(
    line: bytes | TooLong,
    incoming: MemoryObjectSendStream[SessionMessage | Exception],
    writer: _Writer,
    underway: Underway,
    max_message: int,
) -> None:
    if isinstance(line, TooLong):
        await writer.write_error(
            _id_of(line), INVALID_REQUEST, f"invalid_argument: the message is longer than {max_message:,} bytes"
        )
        return
    if not line.strip():
        return
    fault: tuple[int, str] | None = None
    try:
        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        if isinstance(message, JSONRPCNotification) and b'"id"' in line and "id" in json.loads(line):
            # The parser takes a request whose id is null or a fraction for a notification, which nobody answers.
            fault = INVALID_REQUEST, "the message's id must be a string or a whole number"
    except ValidationError as error:
        if any(detail["type"] == "json_invalid" for detail in error.errors(include_input=False)):
            fault = PARSE_ERROR, "the message is not valid JSON in UTF-8"
        else:
            fault = INVALID_REQUEST, "the message is not a JSON-RPC 2.0 message"
    if fault is not None:
        request_id = _id_of(TooLong(line[:_EDGE], line[-_EDGE:], len(line)))
        await writer.write_error(request_id, fault[0], f"invalid_argument: {fault[1]}")
        return
    if not underway.admits(message):
        assert isinstance(message, JSONRPCRequest)
        await writer.write_error(message.id, INTERNAL_ERROR, "too many requests are under way; wait for some answers")
        return
    try:
        await incoming.send(SessionMessage(message))
    except anyio.BrokenResourceError:
        return  # the server stopped listening; the caller is about to leave


def _id_of(line: TooLong) -> Any:
    """The request's id where clients write it, first or last in the object; None when it is not found there."""
    match = _ID_AT_START.search(line.head) or _ID_AT_END.search(line.tail)
    try:
        return None if match is None else json.loads(match.group(1))
    except ValueError:
        # It looks like one and is none: a number that begins with zeros, a control character, no UTF-8.
        return None


async def _write(
    outgoing: MemoryObjectReceiveStream[SessionMessage],
    writer: _Writer,
    underway: Underway,
    answered: anyio.Event,
    flushed: anyio.Event,
) -> None:
    async with outgoing:
        async for item in outgoing:
            underway.hear(item.message)
            await writer.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            answered.set()
    flushed.set()


class _Writer:
    """Writes whole messages to the wire, one after the other, without blocking the event loop."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = anyio.Lock()
        self._closed = False

    async def write(self, data: bytes) -> None:
        # A message once begun is written to its end, or the wire would be torn for the next; a client that does not
        # read is dropped with the whole transport, by its cancellation.
        async with self._lock:
            view = memoryview(data)
            while view and not self._closed:
                try:
                    await _writable(self._descriptor)
                    view = view[os.write(self._descriptor, view[:_WRITE_CHUNK]) :]
                except BlockingIOError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    self._closed = True

    async def write_error(self, request_id: Any, code: int, message: str) -> None:
        answer = {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}
        await self.write(json.dumps(answer).encode() + b"\n")


async def _read_chunk(descriptor: int) -> bytes:
    try:
        await anyio.wait_readable(descriptor)
    except PermissionError:
        await anyio.lowlevel.checkpoint()  # a regular file: always ready, and epoll refuses it
    while True:
        try:
            return os.read(descriptor, _CHUNK)
        except BlockingIOError:
            await anyio.wait_readable(descriptor)
        except ConnectionResetError:
            return b""


async def _writable(descriptor: int) -> None:
    try:
        await anyio.wait_writable(descriptor)
    except PermissionError:
        await anyio.lowlevel.checkpoint()  # a regular file: always ready, and epoll refuses it
