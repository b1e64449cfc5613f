"""Many streams over one link, each with a window of its own, so that none can hold up another.

Both ends are alike, but for the numbers they give to streams. Runs on asyncio; all calls belong to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Union

from server.sandboxes.e2b.relay.frames import PIECE, Frame, ProtocolError, encode, whole_characters
from server.sandboxes.e2b.relay.link import Link

WINDOW = 1 << 20
"""Bytes of one stream that may be on their way in one direction before its reader took them."""

MAX_STREAMS = 512
"""Streams that the other end may have open at once."""

OUTPUT_BATCH = 256 * 1024
"""About how many bytes are handed to a connection at once."""

Item = Union[bytes, Frame]


class StreamClosedError(Exception):
    """The stream is over: it was reset, its process ended, or the other end is gone for good."""


class Stream:
    """One of many. Made by :class:`Mux` only.

    Attributes:
        number: names it on the link.
        on_signal: called at once with a frame of kind ``signal``, whatever else is still unread.
        on_close: called once when it is over.
        final: the frame of kind ``exit``, once it came.
        why: why it was reset; None while it was not.
    """

    def __init__(self, mux: Mux, number: int) -> None:
        self.number = number
        self.on_signal: Callable[[Frame], None] | None = None
        self.on_close: Callable[[], None] | None = None
        self.final: Frame | None = None
        self.why: str | None = None
        self._mux = mux
        self._items: deque[Item] = deque()
        self._input_over = False
        self._output_over = False
        self._credit = WINDOW
        self._taken = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    # --- reading ----------------------------------------------------------------------------------------------

    async def receive(self) -> Item | None:
        """The next part, or frame of kind ``note``; None at the end. One that is cancelled loses nothing.

        Raises:
            StreamClosedError: it was reset, and all that came before was read.
        """
        while not self._items:
            if self.why is not None:
                raise StreamClosedError(self.why)
            if self._input_over:
                return None
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        if isinstance(item, bytes):
            self._taken += len(item)
            if self._taken >= WINDOW // 2 and not self._input_over:
                self._mux.send(Frame("credit", {"s": self.number, "c": self._taken}))
                self._taken = 0
        return item

    async def read(self) -> bytes:
        """The next part, at most :data:`PIECE` bytes; empty at the end. Notes are passed over."""
        while True:
            item = await self.receive()
            if item is None:
                return b""
            if isinstance(item, bytes):
                return item

    async def finish(self) -> Frame | None:
        """Wait for its frame of kind ``exit``; None when it was reset instead. Unread parts stay."""
        while self.final is None and self.why is None:
            self._changed.clear()
            await self._changed.wait()
        return self.final

    # --- writing ----------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether there is an end for what is written."""
        return not self._output_over and self.final is None and self.why is None

    async def write(self, data: bytes) -> None:
        """Send bytes, as fast as the other end takes them.

        Raises:
            StreamClosedError: nobody takes them any more.
        """
        view = memoryview(data)
        while view:
            await self.room()
            piece = bytes(view[: min(PIECE, self._credit)])
            if self._mux.text and len(piece) > 4:
                piece = piece[: whole_characters(piece)]
            self._credit -= len(piece)
            view = view[len(piece) :]
            self._mux.send(Frame("data", {"s": self.number}, piece))

    async def room(self) -> None:
        """Wait until the other end takes bytes.

        Raises:
            StreamClosedError: it will never again.
        """
        while self.writable and self._credit <= 0:
            self._room.clear()
            await self._room.wait()
        if not self.writable:
            raise StreamClosedError(self.why or "it is closed")

    def note(self, what: str, payload: bytes = b"", **fields: Any) -> None:
        """Send a message that is read in its place among the bytes."""
        self._tell("note", what, payload, fields)

    def signal(self, what: str, payload: bytes = b"", **fields: Any) -> None:
        """Send a message that is read at once."""
        self._tell("signal", what, payload, fields)

    def _tell(self, kind: str, what: str, payload: bytes, fields: dict[str, Any]) -> None:
        if self.final is None and self.why is None:
            self._mux.send(Frame(kind, {"s": self.number, "what": what, **fields}, payload))

    def end(self) -> None:
        """Send no more. Idempotent."""
        if self.writable:
            self._output_over = True
            self._mux.send(Frame("end", {"s": self.number}))
            self._settle()

    def exit(self, payload: bytes = b"", **fields: Any) -> None:
        """End it in both directions with a last message. Idempotent."""
        if self.final is None and self.why is None:
            self.final = Frame("exit", {"s": self.number, **fields}, payload)
            self._mux.send(self.final)
            self._close()

    def reset(self, why: str) -> None:
        """Give it up in both directions. Idempotent."""
        if self.why is None and self.final is None and not (self._input_over and self._output_over):
            self._mux.send(Frame("reset", {"s": self.number, "why": why}))
            self.abandon(why)

    # --- called by the mux ------------------------------------------------------------------------------------

    def take(self, frame: Frame) -> None:
        """A frame for this stream came in."""
        if frame.kind == "data":
            self._items.append(frame.payload)
        elif frame.kind == "note":
            self._items.append(frame)
        elif frame.kind == "credit":
            self._credit += frame.number("c")
            self._room.set()
        elif frame.kind == "end":
            self._input_over = True
            self._settle()
        elif frame.kind == "exit":
            self.final = frame
            self._close()
        elif frame.kind == "reset":
            self.abandon(frame.text("why"))
        elif frame.kind == "signal" and self.on_signal is not None:
            self.on_signal(frame)
        self._changed.set()

    def abandon(self, why: str) -> None:
        """It is over without a word to the other end."""
        if self.why is None and self.final is None:
            self.why = why
            self._close()

    def _settle(self) -> None:
        if self._input_over and self._output_over:
            self._close()

    def _close(self) -> None:
        self._input_over = True
        self._changed.set()
        self._room.set()
        self._mux.streams.pop(self.number, None)
        if self.on_close is not None:
            on_close, self.on_close = self.on_close, None
            on_close()


class Mux:
    """One end of the conversation.

    Args:
        first: number of the first stream that is opened here; the other end's must be even where this is odd.
        opened: called with each stream that the other end opens, and the frame that opened it.
        text: whether what goes out must be valid UTF-8.
    """

    def __init__(self, first: int, opened: Callable[[Stream, Frame], None], *, text: bool) -> None:
        self.text = text
        self.streams: dict[int, Stream] = {}
        self.link = Link()
        self.connected = asyncio.Event()
        self._opened = opened
        self._first = first
        self._next = first
        self.active = asyncio.get_running_loop().time()
        """When a frame of a stream passed last."""
        self._output: deque[Frame] = deque()
        self._pending = asyncio.Event()
        self._connection = 0

    def open(self, to: str, payload: bytes = b"", **fields: Any) -> Stream:
        """A new stream to what the other end knows by a name."""
        stream = Stream(self, self._next)
        self._next += 2
        self.streams[stream.number] = stream
        self.send(Frame("open", {"s": stream.number, "to": to, **fields}, payload))
        return stream

    def send(self, frame: Frame) -> None:
        """Send a frame, now or when there is a connection again."""
        self.active = asyncio.get_running_loop().time()
        self.link.numbered(frame)
        if self.connected.is_set():
            self._queue(frame)

    def say(self, frame: Frame) -> None:
        """Send a frame that means something on this connection only."""
        if self.connected.is_set():
            self._queue(frame)

    def _queue(self, frame: Frame) -> None:
        self._output.append(frame)
        self._pending.set()

    def begin(self) -> None:
        """Start anew: the other end knows nothing of what was. All streams are over."""
        self.detach()
        streams, self.streams = list(self.streams.values()), {}
        self.link = Link()
        self._next = self._first
        for stream in streams:
            stream.abandon("the other end was started anew")

    def attach(self, received: int) -> int:
        """There is a connection, and the other end has all frames up to this number.

        Returns:
            The connection's number, for :meth:`output`.

        Raises:
            ProtocolError: there never was one.
        """
        self.link.acknowledged(received)
        self._output.clear()
        self._output.extend(self.link.again())
        self._connection += 1
        self._pending.set()
        self.connected.set()
        return self._connection

    def detach(self) -> None:
        """The connection is gone; what goes out waits."""
        self.connected.clear()
        self._output.clear()
        self._connection += 1
        self._pending.set()

    async def output(self, connection: int) -> bytes:
        """The next bytes for a connection; empty when it is no longer the one.

        Whoever writes to an old connection may still be at it when the next one is there: it must not take what that
        one has to carry.
        """
        while connection == self._connection and not self._output:
            self._pending.clear()
            await self._pending.wait()
        if connection != self._connection:
            # It may have taken another's wake-up.
            self._pending.set()
            return b""
        parts: list[bytes] = []
        size = 0
        while self._output and size < OUTPUT_BATCH:
            parts.append(encode(self.link.stamp(self._output.popleft()), text=self.text))
            size += len(parts[-1])
        return b"".join(parts)

    def take(self, frame: Frame) -> None:
        """A frame came in.

        Raises:
            ProtocolError: it cannot be one.
        """
        if not self.link.take(frame):
            return
        if self.link.owes_acknowledgement:
            self.say(Frame("ack"))
        if "s" not in frame.fields:
            return
        self.active = asyncio.get_running_loop().time()
        number = frame.number("s")
        if frame.kind != "open":
            stream = self.streams.get(number)
            if stream is not None:
                stream.take(frame)
            return
        if number % 2 == self._first % 2 or number in self.streams or len(self.streams) >= MAX_STREAMS:
            raise ProtocolError(f"stream {number} cannot be opened")
        stream = Stream(self, number)
        self.streams[number] = stream
        self._opened(stream, frame)
