"""``start SETTINGS``: start the relay, unless it runs. ``alive SOCKET``: whether it runs. ``connect SOCKET``: be the
wire between it and its host."""

from __future__ import annotations

import os
import socket
import sys
import threading


def connect(path: str) -> None:
    """Carry bytes between the standard streams and the relay until either side is over."""
    relay = socket.socket(socket.AF_UNIX)
    relay.connect(path)

    def inward() -> None:
        while data := os.read(0, 65536):
            relay.sendall(data)
        os._exit(0)

    threading.Thread(target=inward, daemon=True).start()
    try:
        while data := relay.recv(262144):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]
    except OSError:
        pass
    os._exit(0)


def alive(path: str) -> bool:
    """Whether a relay answers."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def start(argument: str) -> None:
    """Detach the relay from whoever starts it. When this returns, it takes connections."""
    from server.sandboxes.e2b.relay.server import listen, serve, settings_of

    settings = settings_of(argument)
    listener = listen(settings)
    if listener is None:
        return
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(str(settings.directory / "relay.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    serve(settings, listener)


def main() -> None:
    """Do what the command line says."""
    if len(sys.argv) == 3 and sys.argv[1] == "connect":
        connect(sys.argv[2])
    elif len(sys.argv) == 3 and sys.argv[1] == "start":
        start(sys.argv[2])
    elif len(sys.argv) == 3 and sys.argv[1] == "alive":
        sys.exit(0 if alive(sys.argv[2]) else 1)
    else:
        sys.exit("usage: relay start SETTINGS | relay connect SOCKET")


if __name__ == "__main__":
    main()
