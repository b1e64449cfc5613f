"""Carries MCP's lines between a client and the daemon, and goes on when the daemon dies. Standard library only.

A client that loses its server tells its user so and does not come back by itself, but the daemon may be killed or
stopped with no session lost. So the shim outlives it: calls that were under way are answered with an error, and the
next message of the client finds a daemon again, or starts one, which is then told what the client had agreed with the
one before.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

MAX_LINE: Final = 16 << 20
"""A longer line is carried in pieces and unread; the daemon refuses it."""

SERVER_ERROR: Final = -32_000

LOST: Final = (
    "Rookery's daemon ended while it worked on this. Sessions and what they have done are kept, and the next call "
    "finds a daemon again: look whether it was done, then repeat the call if it is still wanted."
)

_CHUNK: Final = 65_536
_LASTING: Final = ("logging/setLevel", "resources/subscribe")
"""Requests whose effect lasts, beside ``initialize``."""

Message = dict[str, Any]


class Unserved(Exception):  # noqa: N818 - it is what the client is told
    """No daemon serves this client; the text says why and what to do."""


class Agreement:
    """What a client has told its server once and for good, as messages that tell it to another one."""

    def __init__(self) -> None:
        self._initialize: Message | None = None
        self._initialized: Message | None = None
        self._lasting: dict[tuple[str, str], Message] = {}

    def note(self, message: Message) -> None:
        """Remember a message of the client, if another daemon must hear it."""
        method, parameters = message.get("method"), message.get("params")
        about = str(parameters.get("uri", "")) if isinstance(parameters, dict) else ""
        if method == "initialize":
            self._initialize = message
        elif method == "notifications/initialized":
            self._initialized = message
        elif method == "resources/unsubscribe":
            self._lasting.pop(("resources/subscribe", about), None)
        elif method in _LASTING:
            self._lasting[method, about] = message

    def retold(self) -> Iterator[Message]:
        """The messages, in their order; the answer to each request must come before the next one is sent."""
        if self._initialize is not None:
            yield self._initialize
        if self._initialized is not None:
            yield self._initialized
            yield from self._lasting.values()


class Link:
    """One connection to a daemon.

    Args:
        connection: one that has been agreed on.
        number: tells this link's questions to the client from those of the links before it.
    """

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.number = number
        self._connection = connection
        self._lines = _lines(self._heard, sys.maxsize)

    def send(self, line: bytes) -> bool:
        """Send a line, or a part of one; whether the daemon was there to take it."""
        try:
            self._connection.sendall(line)
        except OSError:
            return False
        return True

    def retell(self, agreement: Agreement) -> bool:
        """Bring the daemon to where the one before it was; whether it is still there."""
        for number, message in enumerate(agreement.retold()):
            if "id" not in message:
                self.send(_line(message))
                continue
            own = f"rookery-{number}"
            self.send(_line({**message, "id": own}))
            # What it says beside the answers is for a client that begins.
            if all(_parsed(line).get("id") != own for line in self._lines):
                return False
        return True

    def messages(self) -> Iterator[tuple[bytes, Message]]:
        """Whole lines of the daemon until it is gone; its questions bear this link's number.

        Without the number a late answer to a daemon that is gone would pass for one to its successor, which counts
        its questions anew.
        """
        for line in self._lines:
            message = _parsed(line)
            if "method" in message and "id" in message:
                message["id"] = self._marked(message["id"])
                line = _line(message)
            elif message.get("method") == "notifications/cancelled" and (question := _cancelled(message)) is not None:
                message["params"]["requestId"] = self._marked(question)
                line = _line(message)
            yield line, message

    def answer(self, message: Message) -> bytes | None:
        """The client's answer to a question, as the daemon expects it; None when another daemon had asked."""
        try:
            number, asked = json.loads(message["id"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return _line({**message, "id": asked}) if number == self.number else None

    def finish(self) -> None:
        """Tell the daemon, if it is there, that the client says no more."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Give up the connection."""
        self._connection.close()

    def _heard(self) -> bytes:
        try:
            return self._connection.recv(_CHUNK)
        except OSError:
            return b""

    def _marked(self, question: Any) -> str:
        return json.dumps([self.number, question])


class Carrier:
    """Carries between the standard streams and one daemon after the other.

    Args:
        connection: to the first daemon, which has agreed to serve.
        find: gives a connection to the next; raises :class:`Unserved`, OSError or ValueError.
    """

    def __init__(self, connection: socket.socket, find: Callable[[], socket.socket]) -> None:
        self._find = find
        self._agreement = Agreement()
        self._link = Link(connection, 1)
        self._lost = False
        self._open: set[str | int] = set()
        """Ids of the client's requests that nobody has answered."""
        self._lock = threading.Lock()
        """Held while the two above change."""
        self._writing = threading.Lock()
        self._listener = self._listening()

    def run(self) -> None:
        """Carry until the client has closed its side and all is answered."""
        for line in _lines(lambda: os.read(0, _CHUNK), MAX_LINE):
            self._carry(line)
        self._link.finish()
        self._listener.join()

    def _carry(self, line: bytes) -> None:
        """Carry a line of the client, or a part of one that is too long."""
        message = _parsed(line) if line.endswith(b"\n") else {}
        if "result" in message or "error" in message:
            answer = self._link.answer(message)
            if answer is not None:
                self._link.send(answer)
            return
        request = message.get("id") if "method" in message else None
        try:
            if self._lost:
                self._relink(afresh=message.get("method") == "initialize")
        except (Unserved, OSError, ValueError) as error:
            if isinstance(request, str | int):
                self._write(_failure(request, f"Rookery's daemon does not serve this client: {error}"))
            return
        with self._lock:
            if isinstance(request, str | int):
                self._open.add(request)
            elif message.get("method") == "notifications/cancelled" and (done := _cancelled(message)) is not None:
                self._open.discard(done)
        if self._link.send(line):
            self._agreement.note(message)
        elif isinstance(request, str | int):
            self._fail([request])

    def _relink(self, *, afresh: bool) -> None:
        """Find a daemon in the place of the one that is lost, and tell it what the client had agreed with that."""
        self._listener.join()
        link = Link(self._find(), self._link.number + 1)
        if not (afresh or link.retell(self._agreement)):
            link.close()
            raise ConnectionResetError(104, "it ended at once; look at daemon/log in ROOKERY_HOME.")
        self._link.close()
        self._link, self._lost = link, False
        self._listener = self._listening()

    def _listening(self) -> threading.Thread:
        listener = threading.Thread(target=self._listen, args=(self._link,), daemon=True)
        listener.start()
        return listener

    def _listen(self, link: Link) -> None:
        """Carry what a daemon says until it is gone, and answer what it did not."""
        for line, message in link.messages():
            if "method" not in message and isinstance(message.get("id"), str | int):
                with self._lock:
                    self._open.discard(message["id"])
            self._write(line)
        with self._lock:
            self._lost = True
            unanswered = list(self._open)
        self._fail(unanswered)

    def _fail(self, requests: Sequence[str | int]) -> None:
        """Answer requests that no daemon will answer any more, each once."""
        for request in requests:
            with self._lock:
                unanswered = request in self._open
                self._open.discard(request)
            if unanswered:
                self._write(_failure(request, LOST))

    def _write(self, line: bytes) -> None:
        with self._writing:
            view = memoryview(line)
            try:
                while view:
                    view = view[os.write(1, view) :]
            except BrokenPipeError:
                os._exit(1)  # the client reads no more


def _lines(read: Callable[[], bytes], longest: int) -> Iterator[bytes]:
    """Whole lines with their ends; one that is too long, or that the end of the input broke off, comes in parts."""
    parts: list[bytes] = []
    size = 0
    while chunk := read():
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join([*parts, end, b"\n"])
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > longest:
            yield b"".join(parts)
            parts, size = [], 0
    if rest := b"".join(parts):
        yield rest


def _parsed(line: bytes) -> Message:
    """The message in a line; nothing when it is none, which the daemon says better."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _line(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _cancelled(message: Message) -> str | int | None:
    """The request that a cancellation is about; None where it names none."""
    parameters = message.get("params")
    request = parameters.get("requestId") if isinstance(parameters, dict) else None
    return request if isinstance(request, str | int) else None


def _failure(request: str | int, text: str) -> bytes:
    return _line({"jsonrpc": "2.0", "id": request, "error": {"code": SERVER_ERROR, "message": text}})
