"""Processes in a cloud sandbox, as the host holds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import anyio

from server.errors import ErrorCode, RookeryError
from server.sandboxes.e2b.relay.frames import Frame
from server.sandboxes.e2b.relay.mux import Stream, StreamClosedError

END_S: Final = 20.0
"""Longest end of a process: a grace, a kill, and the way there and back. What is not ended then is the relay's."""

STDERR_SHOWN: Final = 16 * 1024


class RemoteProcess:
    """Implements :class:`server.sandboxes.base.AgentProcess` for a command that lives as long as its stream.

    Args:
        stream: to the relay.
        released: called once when it is over.
    """

    def __init__(self, stream: Stream, released: Callable[[RemoteProcess], None] | None = None) -> None:
        self._stream = stream
        self._released = released
        self._deaf = False
        self._asked = False
        self._ending = anyio.Lock()
        stream.on_signal = self._signalled
        stream.on_close = self._over
        if stream.final is not None or stream.why is not None:
            self._over()

    def when_over(self, released: Callable[[RemoteProcess], None]) -> None:
        """Have a function called once when it is over; at once when it is."""
        self._released = released
        if self._stream.final is not None or self._stream.why is not None:
            self._over()

    @property
    def owes_answer(self) -> bool:
        """Whether something was written to it since it said something last."""
        return self._asked

    @property
    def returncode(self) -> int | None:
        """Exit status once it ended (negative: killed by that signal), else None."""
        final = self._stream.final
        if final is None:
            return -9 if self._stream.why is not None else None
        code = final.fields.get("code")
        return code if isinstance(code, int) else -9

    async def write(self, data: bytes) -> None:
        """Send to its stdin.

        Raises:
            anyio.BrokenResourceError, anyio.ClosedResourceError: it no longer reads.
        """
        if self._deaf:
            raise anyio.BrokenResourceError
        self._asked = True
        try:
            await self._stream.write(data)
        except StreamClosedError as error:
            raise anyio.ClosedResourceError from error

    async def read(self) -> bytes:
        """The next chunk of its stdout, at most 64 KiB; empty at the end.

        Raises:
            RookeryError: ``sandbox_lost``: the sandbox went away, or this host's hold of it.
        """
        try:
            data = await self._stream.read()
            self._asked = False
            return data
        except StreamClosedError as error:
            raise _lost(error) from error

    async def close_input(self) -> None:
        """End its stdin."""
        self._stream.end()

    @property
    def stderr(self) -> bytes:
        """The end of its stderr, as far as the relay kept it; known once it ended."""
        return b"" if self._stream.final is None else self._stream.final.payload

    @property
    def stderr_dropped(self) -> bool:
        """Whether what came before ``stderr`` was dropped."""
        return self._stream.final is not None and self._stream.final.fields.get("dropped") is True

    def stderr_tail(self) -> str:
        """The last 16 KiB of its stderr, for the log only."""
        return self.stderr[-STDERR_SHOWN:].decode(errors="replace")

    async def wait(self) -> int:
        """Wait until it ended; the exit status.

        Raises:
            RookeryError: ``sandbox_lost``.
        """
        if await self._stream.finish() is None:
            raise _lost(self._stream.why)
        code = self.returncode
        assert code is not None
        return code

    async def terminate(self, *, grace: bool = True) -> None:
        """End it with its whole process tree: TERM to the group, KILL after a grace, reap. Bounded, idempotent."""
        with anyio.CancelScope(shield=True):
            async with self._ending:
                if self._stream.final is None and self._stream.why is None:
                    self._stream.signal("terminate" if grace else "kill")
                    with anyio.move_on_after(END_S):
                        await self._stream.finish()
                    self._stream.reset("it did not end in time")

    def _signalled(self, frame: Frame) -> None:
        if frame.text("what") == "deaf":
            self._deaf = True

    def _over(self) -> None:
        if self._released is not None:
            released, self._released = self._released, None
            released(self)


class RemoteAgent(RemoteProcess):
    """The agent's process, which lives on when this host dies.

    Its output has positions, counted in bytes from its start. What was read and is settled is not given to another
    host; what was not settled is.
    """

    def __init__(self, stream: Stream, released: Callable[[RemoteProcess], None] | None = None) -> None:
        super().__init__(stream, released)
        self._writing = anyio.Lock(fast_acquire=True)
        self._inputs = 0
        self._closed = False
        self.on_admit: Callable[[], None] | None = None
        """Called by :meth:`admit`."""
        self.position = 0
        """Position after what was read last."""
        self.told = b""
        """What it was told and no host has settled, when another host started it."""
        self.keepsake: Any = None
        """What it was started with, for another host."""

    async def met(self) -> bool:
        """Wait for the relay's first word on it; False when there is no agent.

        Raises:
            RookeryError: ``sandbox_unavailable`` when it was not started; ``sandbox_lost``.
        """
        try:
            item = await self._stream.receive()
        except StreamClosedError as error:
            raise _lost(error) from error
        if isinstance(item, Frame) and item.text("what") == "state":
            state = json.loads(item.payload)
            self.position, self._inputs, self.keepsake = state["position"], state["inputs"], state["keepsake"]
            return True
        final = self._stream.final
        if final is not None and final.fields.get("none") is True:
            return False
        raise RookeryError(
            ErrorCode.SANDBOX_UNAVAILABLE,
            "The agent could not be started in its sandbox. `rookery doctor` says what the template lacks.",
            detail=self.stderr_tail(),
        )

    async def read(self) -> bytes:
        """The next chunk of its stdout; see :meth:`RemoteProcess.read`."""
        data = await super().read()
        self.position += len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Send to its stdin: all of it, once, or nothing.

        Raises:
            anyio.BrokenResourceError, anyio.ClosedResourceError: it no longer reads.
        """
        async with self._writing:
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                await super().write(data)
            except BaseException:
                # What was sent of it so far is no input.
                self._stream.note("input", number=0)
                raise
            self._inputs += 1
            self._stream.note("input", number=self._inputs)

    async def close_input(self) -> None:
        """End its stdin."""
        if not self._closed:
            self._closed = True
            self._stream.note("eof")

    def admit(self) -> None:
        """Let its connections through; see :meth:`server.sandboxes.base.LastingProcess.admit`."""
        if self.on_admit is not None:
            self.on_admit()

    def settle(self, position: int) -> None:
        """Everything up to a position is done with, and so are the inputs that were sent until now."""
        self._stream.signal("trim", output=position, inputs=self._inputs)

    def leave(self) -> None:
        """Let go of it: it lives on, for another host."""
        self._stream.reset("the host leaves")


def _lost(cause: object) -> RookeryError:
    return RookeryError(
        ErrorCode.SANDBOX_LOST,
        "The sandbox was lost: it ended, or its connection could not be made again.",
        detail=str(cause),
    )
