"""The step between the server and bubblewrap: a program of its own, run as ``python -I -S launcher.py FD``.

It does what must happen in the new process but before bubblewrap takes over, and what a server with threads cannot
safely do between ``fork`` and ``exec``: join control groups, set resource limits, tie its life to the server's and,
when the server is root, show the sandbox's directories in a private mount namespace and become an unprivileged user.
Then it turns into bubblewrap. It knows no policy: it carries out a plan, NUL-separated words read from ``FD``::

    parent <pid>             end when this process ends; refuse to start when it already has
    descriptor <from> <to>   make the descriptor <from> available as <to>
    limit <number> <value>   soft and hard resource limit (RLIMIT_*)
    oom <value>              oom_score_adj
    nice <value>             give way to others on the processor
    group <file>             join the control group with this ``cgroup.procs``
    stage <directory>        cover this directory with a private, empty, in-memory file system
    bind <source> <name>     show a file or directory under that name in the stage
    identity <uid> <gid>     become this user for good
    run <word>...            the command to become; always last

Only the standard library, and little of it: every import here delays every start of an agent. When a step fails, one
line on stderr says which, and the exit status is 125.
"""

# ruff: noqa: PTH102, PTH112, PTH123 - pathlib takes longer to import than all the rest here takes to run

import ctypes
import os
import resource
import sys

FAILED = 125
"""Exit status of a launch that failed before bubblewrap ran."""

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
SIGKILL = 9
CLONE_NEWNS = 0x0002_0000
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000

_LIBC = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    result = _LIBC.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None if data is None else data.encode(),
    )
    _check(result, f"mount {target}")


def _prctl(option: int, value: int) -> None:
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _tie_life_to(parent: int) -> None:
    """The order matters: a parent that died before the call would never send the signal."""
    _prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        raise OSError("the server is gone")


def _arrange_descriptors(pairs: list[tuple[int, int]]) -> None:
    """Give descriptors their final numbers; all others beside the standard streams close."""
    # Parked above all numbers in use before they get their final ones, so that none overwrites another.
    first_free = max(number for pair in pairs for number in pair) + 1 if pairs else 3
    parked: list[tuple[int, int]] = []
    for source, target in pairs:
        free = first_free + len(parked)
        os.dup2(source, free)
        parked.append((free, target))
    for free, target in parked:
        os.dup2(free, target, inheritable=True)
    last = max([2, *(target for _, target in pairs)])
    wanted = {target for _, target in pairs}
    for number in range(3, last + 1):
        if number not in wanted:
            os.closerange(number, number + 1)
    os.closerange(last + 1, first_free + len(pairs))


def _stage(directory: str, binds: list[tuple[str, str]]) -> None:
    """Show the sources in ``directory``, in a mount namespace that no other process sees.

    The sources are opened before the stage covers the directory, because they may lie below it.
    """
    _check(_LIBC.unshare(CLONE_NEWNS), "unshare mount namespace")
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    sources = [(os.open(source, os.O_PATH), name) for source, name in binds]
    _mount("rookery", directory, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=64k")
    for descriptor, name in sources:
        target = f"{directory}/{name}"
        origin = f"/proc/self/fd/{descriptor}"
        if os.path.isdir(origin):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(origin, target, None, MS_BIND)
        os.close(descriptor)


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.environ.clear()


def launch(plan: list[str]) -> None:
    """Carry out ``plan``. Returns only by an exception.

    Raises:
        OSError: a step failed.
        ValueError: the plan has an unknown step.
    """
    parent = 0
    identity: tuple[int, int] | None = None
    directory = ""
    binds: list[tuple[str, str]] = []
    descriptors: list[tuple[int, int]] = []
    words = iter(plan)
    command: list[str] = []
    for step in words:
        if step == "parent":
            parent = int(next(words))
            _tie_life_to(parent)
        elif step == "descriptor":
            descriptors.append((int(next(words)), int(next(words))))
        elif step == "limit":
            number, value = int(next(words)), int(next(words))
            hard = resource.getrlimit(number)[1]
            bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (bounded, bounded))
        elif step == "oom":
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(next(words))
        elif step == "nice":
            os.nice(int(next(words)))
        elif step == "group":
            with open(next(words), "w") as file:
                file.write("0")
        elif step == "stage":
            directory = next(words)
        elif step == "bind":
            binds.append((next(words), next(words)))
        elif step == "identity":
            identity = int(next(words)), int(next(words))
        elif step == "run":
            command = list(words)
        else:
            raise ValueError(f"unknown step {step!r}")
    if directory:
        _stage(directory, binds)
    if identity is not None:
        _become(*identity)
        # Changing the user cleared the tie to the server.
        _tie_life_to(parent)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _arrange_descriptors(descriptors)
    os.chdir("/")
    os.umask(0o022)
    os.execve(command[0], command, {})  # noqa: S606 - this is the launcher: it exists to become another program


def main() -> None:
    """Read the plan from the descriptor named on the command line, and carry it out."""
    try:
        with open(int(sys.argv[1]), "rb") as file:
            plan = os.fsdecode(file.read()).split("\0")
        launch(plan)
    except Exception as error:
        os.write(2, f"launcher: {error}\n".encode(errors="replace"))
    os._exit(FAILED)


if __name__ == "__main__":
    main()
