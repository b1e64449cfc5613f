"""One command in a sandbox as envd runs it: fan-out of its output to subscribers, its input, its end.

Output that nobody subscribes to is read and dropped. A subscriber that does not take its output holds up all others
and in the end the process. The end is told when the process has ended *and* its output reached its end, or at once
when it was killed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal

CHUNK: Final = 32 * 1024
"""Largest piece of output in one event."""

QUEUE: Final = 64
"""Events that may wait for one subscriber before it holds up the process."""

RETAINED_S: Final = 30.0
"""How long the exit status of a process that ended can be asked for."""

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True)
class Output:
    """A piece of output."""

    stream: Stream
    data: bytes


@dataclass(frozen=True)
class End:
    """The process ended: its exit code, or -1 and the signal that killed it."""

    exit_code: int
    status: str
    exited: bool


@dataclass(frozen=True)
class Cut:
    """The stream ended for another reason than the process' end."""

    code: Literal["unavailable", "deadline_exceeded", "dropped"]
    text: str


@dataclass
class Subscriber:
    """One open stream."""

    queue: asyncio.Queue[Output | End | Cut] = field(default_factory=lambda: asyncio.Queue(QUEUE))
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[object] | None = field(default_factory=asyncio.current_task)
    """Serves the stream."""
    wedged: bool = False
    """A fault: it stays subscribed although its client has left, and takes nothing."""


class Process:
    """A running process. Owned by its :class:`~tests.e2b_cloud.sandbox.Sandbox`."""

    def __init__(self, config: dict[str, object], tag: str | None, stdin: int | None, outputs: Sequence[int]) -> None:
        self.pid = 0
        self.config = config
        self.tag = tag
        self.subscribers: list[Subscriber] = []
        self.end: End | None = None
        self.killed = False
        self.deadline_s: float | None = None
        self._status: int | None = None
        self._stdin = stdin
        self._stdin_lock = asyncio.Lock()
        self._exited = asyncio.Event()
        self._outputs = outputs
        self._readers: list[asyncio.Task[None]] = []
        self._closer: asyncio.Task[None] | None = None
        self.dropped = 0
        """Bytes of output that no subscriber was there for."""

    def run(self, pid: int) -> None:
        """Begin to read its output; the first subscriber is there already."""
        self.pid = pid
        streams: tuple[Stream, Stream] = ("stdout", "stderr")
        self._readers = [
            asyncio.create_task(self._pump(stream, file)) for stream, file in zip(streams, self._outputs, strict=True)
        ]
        self._closer = asyncio.create_task(self._conclude())

    def exited(self, status: int) -> None:
        """Told by the guest: exit code, or minus the signal."""
        self._status = status
        self._exited.set()

    async def _pump(self, stream: Stream, file: int) -> None:
        """Read one of its outputs to the end."""
        try:
            while data := await readable(file):
                await self._publish(Output(stream, data))
        finally:
            os.close(file)

    async def _publish(self, event: Output) -> None:
        """Give a piece to every subscriber, waiting for the slowest."""
        if not self.subscribers:
            self.dropped += len(event.data)
        for subscriber in list(self.subscribers):
            await offer(subscriber, event)

    async def _conclude(self) -> None:
        """Tell of the end."""
        await self._exited.wait()
        assert self._status is not None
        if self.killed:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await asyncio.shield(asyncio.gather(*self._readers, return_exceptions=True))
            for reader in self._readers:
                reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self.close_stdin()
        if self._status < 0:
            self.end = End(-1, f"signal: {signal_name(-self._status)}", exited=False)
        else:
            self.end = End(self._status, f"exit status {self._status}", exited=True)
        for subscriber in list(self.subscribers):
            await offer(subscriber, self.end)

    async def write(self, data: bytes) -> None:
        """Write all to its stdin; blocks, holding the stdin, while the pipe is full.

        Raises:
            BrokenPipeError: it has none, or closed it.
        """
        async with self._stdin_lock:
            left = memoryview(data)
            while left:
                if self._stdin is None:
                    raise BrokenPipeError("stdin is closed")
                try:
                    left = left[os.write(self._stdin, left) :]
                except BlockingIOError:
                    await writable(self._stdin)

    @property
    def has_stdin(self) -> bool:
        """Whether it can be written to."""
        return self._stdin is not None

    def close_stdin(self) -> None:
        """End its stdin."""
        if self._stdin is not None:
            with suppress(ValueError):
                asyncio.get_running_loop().remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = None

    def subscribe(self) -> Subscriber:
        """A new subscriber: sees what comes from now on."""
        subscriber = Subscriber()
        self.subscribers.append(subscriber)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """A stream closed."""
        if not subscriber.wedged:
            subscriber.gone.set()
            with suppress(ValueError):
                self.subscribers.remove(subscriber)

    def cut(self, cut: Cut) -> None:
        """End all its streams without an end of the process."""
        for subscriber in list(self.subscribers):
            subscriber.wedged = False
            while subscriber.queue.full():
                subscriber.queue.get_nowait()
            subscriber.queue.put_nowait(cut)
            self.unsubscribe(subscriber)

    def abandon(self) -> None:
        """The machine is gone: stop reading."""
        self.close_stdin()
        for task in [*self._readers, *([self._closer] if self._closer else [])]:
            task.cancel()


async def offer(subscriber: Subscriber, event: Output | End | Cut) -> None:
    """Put an event into a subscriber's queue, waiting for room or for it to leave."""
    if not subscriber.queue.full():
        subscriber.queue.put_nowait(event)
        return
    putting = asyncio.create_task(subscriber.queue.put(event))
    leaving = asyncio.create_task(subscriber.gone.wait())
    try:
        await asyncio.wait([putting, leaving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        putting.cancel()
        leaving.cancel()


async def follow(subscriber: Subscriber, keepalive_s: float) -> AsyncIterator[Output | End | Cut | None]:
    """All events of a subscriber to its end; None when a keepalive is due."""
    while True:
        try:
            async with asyncio.timeout(keepalive_s):
                event = await subscriber.queue.get()
        except TimeoutError:
            yield None
            continue
        yield event
        if not isinstance(event, Output):
            return


async def readable(file: int) -> bytes:
    """The next piece of a pipe; empty at the end."""
    while True:
        try:
            return os.read(file, CHUNK)
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            ready = asyncio.Event()
            loop.add_reader(file, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(file)


async def writable(file: int) -> None:
    """Wait until a pipe has room."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(file, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(file)


def signal_name(number: int) -> str:
    """As Go spells the two that matter."""
    return {9: "killed", 15: "terminated"}.get(number, f"signal {number}")
