"""``rookery connect``: what MCP clients start. It leads to the home's daemon and then only carries bytes.

Standard library only, and little of it: a client waits for the first answer, and all else is loaded in the daemon
already. Nothing that the client sends is passed on before the daemon agreed to serve it, so a daemon that is about to
leave, or another that starts at the same moment, loses no call.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, Final, NoReturn

from rookery.daemon.hello import question, read_line, write_line
from rookery.daemon.place import START_LOCK, Place
from server.home import home_of

START_S: Final = 60.0
"""Longest that a daemon may take to start: importing on a slow disk, waiting for one that leaves."""

RETRY_S: Final = 0.05

_CHUNK: Final = 65_536
_MAX_TOLD: Final = 2000
_LARGEST_REQUEST: Final = 1 << 24
_SERVER_ERROR: Final = -32_000


class Unserved(Exception):  # noqa: N818 - it is what the client is told
    """No daemon serves this client; the text says why and what to do."""


def run_connect() -> None:
    """The command ``rookery connect``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        connection = find_daemon("serve")
    except (Unserved, OSError, ValueError) as error:
        _tell(f"Rookery's daemon does not serve this client: {error}")
    _carry(connection)


def find_daemon(want: str) -> socket.socket:
    """A connection that the home's daemon has agreed to serve, starting one if there is none.

    Raises:
        Unserved: it does not, or could not be started.
        OSError: the home cannot be used.
    """
    place = Place(home_of(os.environ))
    deadline = time.monotonic() + START_S
    try:
        while time.monotonic() < deadline:
            connection = place.connect()
            if connection is None:
                _start(place, deadline)
                continue
            answer = _answer(connection, want)
            if answer is not None and answer.get("serves"):
                return connection
            connection.close()
            if answer is not None and "refusal" in answer:
                raise Unserved(str(answer["refusal"]))
            # It is about to leave, to make way for us or because nobody was there: another takes its place.
            time.sleep(RETRY_S)
    finally:
        place.close()
    raise Unserved("it did not start in time; look at daemon/log in ROOKERY_HOME.")


def _answer(connection: socket.socket, want: str) -> dict[str, Any] | None:
    try:
        write_line(connection, question(want))
        return read_line(connection)
    except (BrokenPipeError, ConnectionResetError):
        return None


def _start(place: Place, deadline: float) -> None:
    """Start a daemon, unless another shim has just done so.

    Raises:
        Unserved: it left before it could serve.
    """
    with place.locked(START_LOCK, max(0.0, deadline - time.monotonic())) as held:
        if not held:
            return
        already = place.connect()
        if already is not None:
            already.close()
            return
        log = place.open_log()
        try:
            before = os.fstat(log).st_size
            if _spawned(log):
                return
            said = _log_since(place, before)
        finally:
            os.close(log)
    raise Unserved(f"it could not start. {said or 'Look at daemon/log in ROOKERY_HOME.'}")


def _log_since(place: Place, before: int) -> str:
    with (place.path / "log").open("rb") as file:
        file.seek(before)
        return file.read(_MAX_TOLD).decode("utf-8", "replace").strip()


def _spawned(log: int) -> bool:
    """Start the daemon as nobody's child, in a session of its own; whether it serves."""
    ready, told = os.pipe()
    middle = os.fork()
    if middle == 0:
        _become_daemon(log, told)
    os.close(told)
    os.waitpid(middle, 0)
    with os.fdopen(ready, "rb") as pipe:
        # At its end the pipe closes by itself: a daemon that fails keeps nobody waiting.
        return bool(pipe.readline())


def _become_daemon(log: int, told: int) -> NoReturn:
    """In the forked process: leave the client's session and group, and run the daemon."""
    try:
        os.setsid()
        if os.fork() > 0:
            os._exit(0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, place in ((nothing, 0), (told, 1), (log, 2)):
            os.dup2(descriptor, place)
        os.execv(sys.executable, [sys.executable, "-m", "rookery", "daemon", "run"])  # noqa: S606 - no shell is wanted
    finally:
        os._exit(1)


def _carry(connection: socket.socket) -> NoReturn:
    """Carry bytes both ways until one side has closed; then leave."""
    threading.Thread(target=_carry_input, args=(connection,), daemon=True).start()
    code = 0
    try:
        while chunk := connection.recv(_CHUNK):
            _write_all(1, chunk)
    except ConnectionResetError:
        code = 1
    except BrokenPipeError:
        pass  # the client reads no more
    # The other thread may be waiting for input that never comes.
    os._exit(code if _input_ended.is_set() else 1)


_input_ended: Final = threading.Event()


def _carry_input(connection: socket.socket) -> None:
    try:
        while chunk := os.read(0, _CHUNK):
            connection.sendall(chunk)
    except OSError:
        return  # the daemon is gone, which the other thread sees
    _input_ended.set()
    connection.shutdown(socket.SHUT_WR)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _tell(message: str) -> NoReturn:
    """Answer the client's first request with why it is not served, and leave."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    while line := sys.stdin.buffer.readline(_LARGEST_REQUEST):
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(request, dict) and isinstance(request.get("id"), str | int):
            answer = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": _SERVER_ERROR, "message": message}}
            _write_all(1, json.dumps(answer).encode() + b"\n")
            break
    os._exit(1)
