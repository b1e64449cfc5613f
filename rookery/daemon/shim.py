"""``rookery connect``: what MCP clients start. It leads to the home's daemon and then only carries lines.

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
import time
from typing import Any, Final, NoReturn

from rookery.daemon.carrying import SERVER_ERROR, Carrier, Unserved
from rookery.daemon.hello import question, read_line, write_line
from rookery.daemon.place import START_LOCK, Place
from rookery.version import VERSION
from server.home import home_of

START_S: Final = 60.0
"""Longest that a daemon may take to start: importing on a slow disk, waiting for one that leaves."""

RETRY_S: Final = 0.05

_MAX_TOLD: Final = 2000
_LARGEST_REQUEST: Final = 1 << 24


def run_connect() -> None:
    """The command ``rookery connect``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        connection = find_daemon("serve")
    except (Unserved, OSError, ValueError) as error:
        _tell(f"Rookery's daemon does not serve this client: {error}")
    Carrier(connection, lambda: find_daemon("serve")).run()
    # The thread that listens to a daemon may be waiting for one that does not end.
    os._exit(0)


def find_daemon(want: str) -> socket.socket:
    """A connection that the home's daemon has agreed to serve, starting one if there is none.

    Raises:
        Unserved: it does not, or could not be started.
        OSError: the home cannot be used.
    """
    place = Place(home_of(os.environ))
    deadline = time.monotonic() + START_S
    made_way = False
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
            other = (answer or {}).get("version", VERSION) != VERSION
            if other and made_way:
                raise Unserved(
                    f"Rookery {(answer or {})['version']} is installed by now, and this client still runs {VERSION}. "
                    "Restart the client."
                )
            made_way = made_way or other
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
            answer = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": SERVER_ERROR, "message": message}}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            break
    os._exit(1)
