"""Makes the one way out of a sandbox: a program of its own, run as ``python -I -S listener.py PID UID PORT FD``.

It enters the network namespace of the process ``PID``, listens on the TCP port there, hands the listening socket back
over the Unix socket ``FD``, and ends. The server then accepts connections that programs inside make to their own
loopback. Nothing of this runs inside the sandbox, where the agent could stop or replace it.

A network namespace belongs to the user namespace that it was made in, and the uid that made that one may enter both
(``user_namespaces(7)``). So the program becomes the sandbox's uid first (``UID``; -1: it stays who it is), and needs
no privilege after that, whether the server is root or not.

Only the standard library, and little of it, for this delays the start of an agent. When a step fails, one line on
stderr says which, and the exit status is 125.
"""

import ctypes
import fcntl
import os
import socket
import sys

FAILED = 125
BACKLOG = 128
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000
NS_GET_USERNS = 0xB701
"""``ioctl_ns(2)``: a descriptor of the user namespace that owns a namespace."""

_LIBC = ctypes.CDLL(None, use_errno=True)


def _enter(namespace: int, kind: int) -> None:
    if _LIBC.setns(namespace, kind) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def listen_within(pid: int, uid: int, port: int) -> socket.socket:
    """A socket that listens on ``port`` in the network namespace of ``pid``. This process stays in there.

    Raises:
        OSError: a step failed.
    """
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    _enter(fcntl.ioctl(network, NS_GET_USERNS), CLONE_NEWUSER)
    _enter(network, CLONE_NEWNET)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Any address, because loopback may not be up yet; there is no other interface in there.
    listener.bind(("0.0.0.0", port))  # noqa: S104
    listener.listen(BACKLOG)
    return listener


def main() -> None:
    """Do it, with the numbers from the command line."""
    try:
        pid, uid, port, descriptor = (int(word) for word in sys.argv[1:])
        listener = listen_within(pid, uid, port)
        with socket.socket(fileno=descriptor) as back:
            socket.send_fds(back, [b"."], [listener.fileno()])
    except Exception as error:
        os.write(2, f"listener: {error}\n".encode(errors="replace"))
        os._exit(FAILED)
    os._exit(0)


if __name__ == "__main__":
    main()
