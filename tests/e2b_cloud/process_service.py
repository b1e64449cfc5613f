"""envd's process service over Connect."""

from __future__ import annotations

import asyncio
import base64
import binascii
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from e2b.envd.process import process_pb as messages
from e2b.envd.process.process_connect import Process as ProcessProtocol
from protobuf import Oneof

from tests.e2b_cloud.machine import GuestError, MachineGoneError
from tests.e2b_cloud.processes import Cut, End, Output, Process, Subscriber, follow
from tests.e2b_cloud.sandbox import GONE, Sandbox

KEEPALIVE_S: Final = 90.0

current: ContextVar[Sandbox] = ContextVar("current")
"""The sandbox that a request is for."""


class DroppedError(Exception):
    """The connection is to break off without an end of the stream."""


def refusal(error: GuestError) -> ConnectError:
    """What the guest refused, as Connect says it."""
    return ConnectError(Code(error.code), str(error))


def gone(sandbox: Sandbox) -> ConnectError:
    """What a request gets when its sandbox ends under it."""
    return ConnectError(Code.UNAVAILABLE, GONE.format(sandbox.identity))


def user_of(context: Any) -> str | None:
    """The user named in the request, if any; E2B's way is Basic authentication without a password."""
    kind, _, value = (context.request_headers.get("authorization") or "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[0] or None
    except (binascii.Error, UnicodeDecodeError):
        raise ConnectError(Code.UNAUTHENTICATED, "invalid authorization header") from None


def wrapped(kind: str, value: Any) -> messages.ProcessEvent:
    """One event of a process."""
    chosen: Any = Oneof(kind, value)
    return messages.ProcessEvent(event=chosen)


def event_of(event: Output | End) -> messages.ProcessEvent:
    """An event as the wire has it."""
    if isinstance(event, Output):
        output: Any = Oneof(event.stream, event.data)
        return wrapped("data", messages.ProcessEvent.DataEvent(output=output))
    end = messages.ProcessEvent.EndEvent(
        exit_code=event.exit_code,
        exited=event.exited,
        status=event.status,
        error=None if event.exit_code == 0 else event.status,
    )
    return wrapped("end", end)


def start_of(pid: int) -> messages.ProcessEvent:
    """The first event of every stream."""
    return wrapped("start", messages.ProcessEvent.StartEvent(pid=pid))


KEEPALIVE: Final = wrapped("keepalive", messages.ProcessEvent.KeepAlive())


async def events(process: Process, subscriber: Subscriber, context: Any) -> AsyncIterator[messages.ProcessEvent]:
    """The events of one stream from its start to its end."""
    yield start_of(process.pid)
    keepalive_s = float(context.request_headers.get("keepalive-ping-interval") or KEEPALIVE_S)
    async for event in follow(subscriber, keepalive_s):
        if event is None:
            yield KEEPALIVE
        elif isinstance(event, Cut):
            if event.code == "dropped":
                raise DroppedError("the double breaks this stream off")
            raise ConnectError(Code(event.code), event.text)
        else:
            yield event_of(event)


def deadline_of(context: Any) -> float | None:
    """Seconds of ``connect-timeout-ms``; None when there is no bound."""
    value = context.request_headers.get("connect-timeout-ms")
    return int(value) / 1000 if value and int(value) > 0 else None


class ProcessService(ProcessProtocol):
    """See :mod:`tests.e2b_cloud.processes` for what it does; here is only the wire."""

    async def start(self, request: messages.StartRequest, context: Any) -> AsyncIterator[messages.StartResponse]:
        """Start a command and stream its output; the request's deadline is the process' deadline."""
        sandbox = current.get()
        if request.pty is not None:
            raise ConnectError(Code.UNIMPLEMENTED, "the double has no pseudo terminals")
        assert request.process is not None
        config = request.process
        try:
            process = await sandbox.start(
                [config.cmd, *config.args],
                user=user_of(context),
                cwd=config.cwd if config.has_field("cwd") else "",
                variables=dict(config.envs),
                stdin=request.stdin if request.has_field("stdin") else True,
                tag=request.tag if request.has_field("tag") else None,
            )
        except GuestError as error:
            raise refusal(error) from None
        except MachineGoneError:
            raise gone(sandbox) from None
        subscriber = process.subscribe()
        process.run(process.pid)
        process.deadline_s = seconds = deadline_of(context)
        timer = None
        if seconds is not None:
            timer = asyncio.create_task(end_at_deadline(sandbox, process, seconds))
        try:
            async for event in events(process, subscriber, context):
                yield messages.StartResponse(event=event)
                if timer is not None and event.event is not None and event.event.field == "end":
                    timer.cancel()
        finally:
            process.unsubscribe(subscriber)

    async def connect(self, request: messages.ConnectRequest, context: Any) -> AsyncIterator[messages.ConnectResponse]:
        """Stream the output of a running command from now on; the deadline ends the stream alone."""
        process = self._selected(request.process)
        subscriber = process.subscribe()
        timer = None
        if process.end is not None:
            subscriber.queue.put_nowait(process.end)
        elif (seconds := deadline_of(context)) is not None:
            timer = asyncio.get_running_loop().call_later(
                seconds, subscriber.queue.put_nowait, Cut("deadline_exceeded", "the stream's time is over")
            )
        try:
            async for event in events(process, subscriber, context):
                yield messages.ConnectResponse(event=event)
        finally:
            if timer is not None:
                timer.cancel()
            process.unsubscribe(subscriber)

    async def list(self, request: messages.ListRequest, context: Any) -> messages.ListResponse:
        """All commands that run."""
        return messages.ListResponse(
            processes=[
                messages.ProcessInfo(
                    config=messages.ProcessConfig(
                        cmd=str(process.config["cmd"]),
                        args=list(process.config["args"]),  # type: ignore[call-overload]
                        envs=dict(process.config["envs"]),  # type: ignore[call-overload]
                        cwd=str(process.config["cwd"]) or None,
                    ),
                    pid=process.pid,
                    tag=process.tag,
                )
                for process in current.get().processes.values()
                if process.end is None
            ]
        )

    async def send_input(self, request: messages.SendInputRequest, context: Any) -> messages.SendInputResponse:
        """Write to a command's stdin."""
        await self._write(self._selected(request.process), request.input)
        return messages.SendInputResponse()

    async def stream_input(
        self, request: AsyncIterator[messages.StreamInputRequest], context: Any
    ) -> messages.StreamInputResponse:
        """Write to a command's stdin in order; the end of the stream does not close it."""
        process: Process | None = None
        async for message in request:
            event: Any = message.event
            if event is None or event.field == "keepalive":
                continue
            if event.field == "start":
                process = self._selected(event.value.process)
            elif process is None:
                raise ConnectError(Code.INVALID_ARGUMENT, "the first message must be a start")
            else:
                await self._write(process, event.value.input)
        return messages.StreamInputResponse()

    async def close_stdin(self, request: messages.CloseStdinRequest, context: Any) -> messages.CloseStdinResponse:
        """End a command's stdin."""
        self._selected(request.process).close_stdin()
        return messages.CloseStdinResponse()

    async def send_signal(self, request: messages.SendSignalRequest, context: Any) -> messages.SendSignalResponse:
        """Signal one process, not its group."""
        numbers = {messages.Signal.SIGKILL: signal.SIGKILL, messages.Signal.SIGTERM: signal.SIGTERM}
        process = self._selected(request.process)
        if request.signal not in numbers:
            raise ConnectError(Code.INVALID_ARGUMENT, "invalid signal")
        try:
            await current.get().signal(process, numbers[request.signal])
        except GuestError as error:
            raise refusal(error) from None
        except MachineGoneError:
            raise gone(current.get()) from None
        return messages.SendSignalResponse()

    def _selected(self, selector: messages.ProcessSelector | None) -> Process:
        """The process that a request names."""
        chosen = None if selector is None else selector.selector
        if chosen is None:
            raise ConnectError(Code.INVALID_ARGUMENT, "no process selected")
        try:
            if chosen.field == "pid":
                return current.get().find(pid=chosen.value)
            return current.get().find(tag=chosen.value)
        except GuestError as error:
            raise refusal(error) from None

    async def _write(self, process: Process, given: messages.ProcessInput | None) -> None:
        """Write what came, or say why not."""
        if given is None or given.input is None or given.input.field != "stdin":
            raise ConnectError(Code.INVALID_ARGUMENT, "only stdin can be written to")
        try:
            await process.write(given.input.value)
        except OSError as error:
            raise ConnectError(Code.INTERNAL, f"error writing to stdin: {error}") from None


async def end_at_deadline(sandbox: Sandbox, process: Process, seconds: float) -> None:
    """Kill a command whose time is over, and end its streams for that reason."""
    await asyncio.sleep(seconds)
    if process.end is None:
        await expire(sandbox, process)


async def expire(sandbox: Sandbox, process: Process) -> None:
    """A command's time is over: it is killed, and its streams end for that reason."""
    process.cut(Cut("deadline_exceeded", "context deadline exceeded"))
    with suppress(GuestError, MachineGoneError):
        await sandbox.signal(process, signal.SIGKILL)
