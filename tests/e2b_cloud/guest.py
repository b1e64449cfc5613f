"""The process that stands for envd inside a sandbox of the double: spawns, signals, and touches files there.

Runs as root of the sandbox under bubblewrap, alone from the standard library. It gets requests over one socket of
packets, whose descriptor is its argument: JSON with an ``id``, files as passed descriptors. It answers each once, and
tells of every command that ended. A message too long for a packet travels in a passed memory file. As in the real
envd, files are touched with root's rights and then given to the user; what follows a link there, follows it here.
"""

from __future__ import annotations

import array
import errno
import fcntl
import grp
import json
import os
import pwd
import select
import signal
import socket
import stat
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Request = dict[str, Any]
    Outcome = Any
    """A dictionary to answer with, or that and the descriptors to pass."""

# Nothing is imported that is not needed: every sandbox pays for it at its start.

LARGEST_PACKET = 60_000
ATTRIBUTES = "user.e2b."

SPAWNED: set[int] = set()
"""Commands whose end is to be told."""


class RefusalError(Exception):
    """An answer that is an error: a Connect code and a text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def send(control: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """One message with its descriptors."""
    data = json.dumps(message).encode()
    carried = list(descriptors)
    if len(data) > LARGEST_PACKET:
        memory = os.memfd_create("message")
        with os.fdopen(os.dup(memory), "wb") as file:
            file.write(data)
        carried.insert(0, memory)
        data = b"M"
    packed = array.array("i", carried)
    control.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)] if carried else [])
    if data == b"M":
        os.close(carried[0])


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One message with its descriptors; None at the end."""
    data, ancillary, _, _ = control.recvmsg(LARGEST_PACKET + 1, socket.CMSG_SPACE(8 * 4))
    descriptors: array.array[int] = array.array("i")
    for _, kind, content in ancillary:
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    carried = list(descriptors)
    if not data:
        return None
    if data == b"M":
        with os.fdopen(carried.pop(0), "rb") as file:
            file.seek(0)
            data = file.read()
    message: dict[str, Any] = json.loads(data)
    return message, carried


def account(name: str) -> pwd.struct_passwd:
    """The entry of a user, read afresh, for users can be added."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise RefusalError("unauthenticated", f"invalid username: '{name}'") from None


def resolve(path: str, user: str) -> str:
    """A path as envd takes it: ``~`` and relative paths are in the user's home."""
    home = account(user).pw_dir
    if path == "~" or path.startswith("~/"):
        path = home + path[1:]
    return os.path.normpath(os.path.join(home, path))


def spawn(request: Request, descriptors: list[int]) -> Outcome:
    """Fork and execute; the pid. Errors of working directory and program come back through a pipe."""
    user = account(request["user"])
    cwd = resolve(request["cwd"] or ".", request["user"])
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        **request["env"],
    }
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    report, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            stage = "user"
            os.setgroups(groups)
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
            stage = "cwd"
            os.chdir(cwd)
            stage = "exec"
            tell = fcntl.fcntl(tell, fcntl.F_DUPFD_CLOEXEC, 100)
            kept = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 100) for one in descriptors]
            for place, one in enumerate(kept):
                os.dup2(one, place)
            os.closerange(3, 100)
            os.execvpe(request["argv"][0], request["argv"], env)
        except BaseException as error:
            os.write(tell, f"{stage}:{error}".encode())
        finally:
            os._exit(127)
    os.close(tell)
    with os.fdopen(report, "rb") as reader:
        failure = reader.read().decode()
    if failure:
        os.waitpid(pid, 0)
        stage, _, text = failure.partition(":")
        if stage == "cwd":
            raise RefusalError("invalid_argument", f"cwd '{cwd}' does not exist")
        raise RefusalError("invalid_argument", f"error starting process: {text}")
    SPAWNED.add(pid)
    return {"pid": pid}


def named(number: int, name_of: Callable[[int], str]) -> str:
    """A user's or group's name, or its number."""
    try:
        return name_of(number)
    except KeyError:
        return str(number)


def entry(path: str) -> dict[str, Any]:
    """What the API says of a file. A link shows its target's kind."""
    own = os.lstat(path)
    link = stat.S_ISLNK(own.st_mode)
    shown = own
    if link:
        with suppress(OSError):
            shown = os.stat(path)
    kind = "directory" if stat.S_ISDIR(shown.st_mode) else "symlink" if stat.S_ISLNK(shown.st_mode) else "file"
    metadata = {}
    with suppress(OSError):
        for name in os.listxattr(path):
            if name.startswith(ATTRIBUTES):
                metadata[name[len(ATTRIBUTES) :]] = os.getxattr(path, name).decode()
    return {
        "name": os.path.basename(path) or "/",
        "type": kind,
        "path": path,
        "size": shown.st_size,
        "mode": stat.S_IMODE(shown.st_mode),
        "permissions": stat.filemode(own.st_mode),
        "owner": named(own.st_uid, lambda number: pwd.getpwuid(number).pw_name),
        "group": named(own.st_gid, lambda number: grp.getgrgid(number).gr_name),
        "modified": own.st_mtime,
        "target": os.path.realpath(path) if link else None,
        "metadata": metadata,
        "is_symlink": link,
    }


def make_directories(path: str, user: pwd.struct_passwd) -> None:
    """A directory and all that lead to it; new ones belong to the user."""
    if os.path.isdir(path):
        return
    if os.path.lexists(path):
        raise RefusalError("invalid_argument", f"path is a file: {path}")
    make_directories(os.path.dirname(path), user)
    os.mkdir(path, 0o755)
    os.chown(path, user.pw_uid, user.pw_gid)


def touch_stat(request: Request) -> Outcome:
    return {"entry": entry(resolve(request["path"], request["user"]))}


def touch_list(request: Request) -> Outcome:
    top = resolve(request["path"], request["user"])
    if not os.path.isdir(top):
        os.lstat(top)
        raise RefusalError("invalid_argument", f"path is not a directory: {top}")
    entries, waiting = [], [(top, 1)]
    while waiting:
        directory, depth = waiting.pop(0)
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            entries.append(entry(path))
            if depth < request["depth"] and os.path.isdir(path) and not os.path.islink(path):
                waiting.append((path, depth + 1))
    return {"entries": entries}


def touch_make(request: Request) -> Outcome:
    path = resolve(request["path"], request["user"])
    if os.path.isdir(path):
        raise RefusalError("already_exists", f"directory already exists: {path}")
    make_directories(path, account(request["user"]))
    return {"entry": entry(path)}


def touch_move(request: Request) -> Outcome:
    source, target = (resolve(request[name], request["user"]) for name in ("path", "destination"))
    os.lstat(source)
    make_directories(os.path.dirname(target), account(request["user"]))
    os.rename(source, target)
    return {"entry": entry(target)}


def touch_remove(request: Request) -> Outcome:
    path = resolve(request["path"], request["user"])
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
    return {}


def touch_read(request: Request) -> Outcome:
    path = resolve(request["path"], request["user"])
    if os.path.isdir(path):
        raise RefusalError("invalid_argument", f"path '{path}' is a directory")
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise RefusalError("invalid_argument", f"path '{path}' is not a regular file")
    return {"size": os.fstat(file).st_size}, [file]


def touch_write(request: Request) -> Outcome:
    path = resolve(request["path"], request["user"])
    user = account(request["user"])
    if os.path.isdir(path):
        raise RefusalError("invalid_argument", f"path is a directory: {path}")
    make_directories(os.path.dirname(path), user)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    os.fchown(file, user.pw_uid, user.pw_gid)
    for name, value in request["metadata"].items():
        os.setxattr(file, ATTRIBUTES + name, value.encode())
    return {"path": path, "name": os.path.basename(path)}, [file]


def touch_lose(request: Request) -> Outcome:
    """Take back the newest half of the files below some paths: every other one emptied, every other one removed.

    This is what a resume with a half-restored disk looks like from within. Files only, of any owner.
    """
    found = []
    for top in request["paths"]:
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                if stat.S_ISREG(os.lstat(path).st_mode):
                    found.append((os.lstat(path).st_ctime_ns, path))
    found.sort(reverse=True)
    lost = [path for _, path in found[: (len(found) + 1) // 2]]
    for number, path in enumerate(lost):
        if number % 2:
            os.truncate(path, 0)
        else:
            os.unlink(path)
    return {"lost": lost}


def touch_usage(request: Request) -> Outcome:
    """What the metrics endpoint tells."""
    disk = os.statvfs("/")
    resident = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/statm", encoding="ascii") as file:
                resident += int(file.read().split()[1]) * 4096
    return {"memory": resident, "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize}


def signal_process(request: Request) -> Outcome:
    """A signal to one process alone, never to its group."""
    try:
        os.kill(request["pid"], request["signal"])
    except ProcessLookupError:
        raise RefusalError("not_found", f"process with pid {request['pid']} not found") from None
    return {}


def signal_everything(request: Request) -> Outcome:
    """A signal to all processes of the sandbox but this one and the first."""
    with suppress(ProcessLookupError):
        os.kill(-1, request["signal"])
    return {}


def listen(request: Request) -> Outcome:
    """A listening socket of the sandbox's own network, for whoever is outside to answer."""
    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((request["address"], request["port"]))
    listener.listen(128)
    return {}, [listener.detach()]


AT_ONCE: dict[str, Callable[[Request, list[int]], Outcome]] = {
    "spawn": spawn,
    "listen": lambda request, _: listen(request),
    "signal": lambda request, _: signal_process(request),
    "signal_everything": lambda request, _: signal_everything(request),
}
BESIDE: dict[str, Callable[[Request], Outcome]] = {
    "stat": touch_stat,
    "list": touch_list,
    "make": touch_make,
    "move": touch_move,
    "remove": touch_remove,
    "read": touch_read,
    "write": touch_write,
    "lose": touch_lose,
    "usage": touch_usage,
}
"""Done in a process of their own, for they may take long."""


def answer(control: socket.socket, request: Request, work: Callable[..., Outcome], *arguments: Any) -> None:
    """Do one request and send its answer, or its refusal."""
    try:
        outcome = work(*arguments)
        result, descriptors = outcome if isinstance(outcome, tuple) else (outcome, [])
        send(control, {"id": request["id"], "ok": result}, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
    except RefusalError as error:
        send(control, {"id": request["id"], "code": error.code, "message": str(error)})
    except FileNotFoundError as error:
        send(control, {"id": request["id"], "code": "not_found", "message": f"path not found: {error.filename}"})
    except OSError as error:
        code = "resource_exhausted" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "internal"
        send(control, {"id": request["id"], "code": code, "message": str(error)})


def reap(control: socket.socket) -> None:
    """Tell of every child that ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in SPAWNED:
            SPAWNED.remove(pid)
            send(control, {"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def main() -> None:
    """Serve until the double closes the socket, which ends the whole sandbox."""
    os.umask(0o022)
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    os.closerange(3, control.fileno())
    os.closerange(control.fileno() + 1, 1024)
    waking, woken = os.pipe()
    for one in (waking, woken):
        os.set_blocking(one, False)
        os.set_inheritable(one, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    send(control, {"up": os.getpid()})
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(waking, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if waking in ready:
            os.read(waking, 4096)
            reap(control)
        if control.fileno() in ready:
            received = receive(control)
            if received is None:
                sys.exit(0)
            request, descriptors = received
            work = request["work"]
            if work in AT_ONCE:
                answer(control, request, AT_ONCE[work], request, descriptors)
            elif os.fork() == 0:
                signal.set_wakeup_fd(-1)
                try:
                    answer(control, request, BESIDE[work], request)
                finally:
                    os._exit(0)
            for descriptor in descriptors:
                os.close(descriptor)


if __name__ == "__main__":
    main()
