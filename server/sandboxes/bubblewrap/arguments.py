"""The argument list of bubblewrap: all that a sandbox is, in one place.

bubblewrap promises nothing by itself; its safety is entirely this list. It is pure, so that a test holds it still:
every change of it shows up as a change of a file under review.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from server.sandboxes import base
from server.sandboxes.bubblewrap.etc import HOME, HOST_NAME, UID, USER
from server.sandboxes.bubblewrap.layout import SystemLayout

_MIB: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFUSED_NAMES: Final = frozenset(
    {"BASH_ENV", "ENV", "IFS", "NODE_OPTIONS", "NODE_PATH", "PERL5OPT", "PYTHONSTARTUP", "SHELLOPTS", "TERMINAL"}
)
_REFUSED_PREFIXES: Final = ("LD_", "BUN_INSPECT", "DYLD_", "GLIBC_TUNABLES", "BASH_FUNC_")

ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": HOME,
    "USER": USER,
    "LOGNAME": USER,
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
}
"""What the provider itself sets. A caller's variable of the same name wins."""

OPTIONS_DESCRIPTOR: Final = 3
SECCOMP_DESCRIPTOR: Final = 4
INFO_DESCRIPTOR: Final = 5
READY_DESCRIPTOR: Final = 6
STDIN_DESCRIPTOR: Final = 7
STDOUT_DESCRIPTOR: Final = 8
WAIT_DESCRIPTOR: Final = 9
"""Numbers of what the host hands to bubblewrap. Of one digit, because the starter's shell knows no others."""

STARTER: Final = (
    f"exec <&{STDIN_DESCRIPTOR} >&{STDOUT_DESCRIPTOR} {STDIN_DESCRIPTOR}<&- {STDOUT_DESCRIPTOR}>&-; "
    'ulimit -u "$1" 2>/dev/null || ulimit -p "$1" || exit 125; shift; '
    f'printf . >&{READY_DESCRIPTOR}; exec {READY_DESCRIPTOR}>&-; exec "$@"'
)
"""What a shell does first inside, after which it becomes the command.

It takes the command's standard input and output from descriptors that bubblewrap passes on but does not keep: the
first process of the namespace is bubblewrap's, the agent's commands can write into its memory, and so it must not
hold the stream that the host listens to. It bounds the number of processes (shells differ in the letter), and says by
one byte that the sandbox stands."""


@dataclass(frozen=True)
class Sources:
    """Where bubblewrap finds what it shows: host paths, or their names in the launcher's stage."""

    etc: str
    cli: str
    gateway_socket: str
    workspace: str
    config: str | None
    """None: no configuration directory (commands other than the agent)."""


def check_environment(env: Mapping[str, str]) -> None:
    """Refuse names and values that are malformed or that make programs load foreign code.

    Raises:
        ValueError: names the variable.
    """
    for name, value in env.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"environment variable name {name!r} is malformed")
        if name in _REFUSED_NAMES or name.startswith(_REFUSED_PREFIXES):
            raise ValueError(f"environment variable {name} changes how programs are loaded and is refused")
        if "\0" in value:
            raise ValueError(f"environment variable {name} holds a NUL character")


def check_command(argv: Sequence[str]) -> None:
    """Refuse a command that another program could take for its own options.

    Raises:
        ValueError: it is empty, begins with a dash or holds a NUL character.
    """
    if not argv or not argv[0]:
        raise ValueError("the command is empty")
    if argv[0].startswith("-"):
        raise ValueError("the command begins with a dash")
    if any("\0" in word for word in argv):
        raise ValueError("the command holds a NUL character")


def bubblewrap_options(
    sources: Sources,
    layout: SystemLayout,
    limits: base.Limits,
    env: Mapping[str, str],
    *,
    waits: bool = False,
) -> list[str]:
    """The options of one sandbox, without the program and without the command.

    With ``waits`` the command does not start before :data:`WAIT_DESCRIPTOR` has something to read.

    The file systems in memory are bounded by shares of ``limits.memory_mb``: they are paid from it.

    Raises:
        ValueError: the environment is refused (:func:`check_environment`).
    """
    check_environment(env)
    words = [
        *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup", "--unshare-net"),
        *("--uid", str(UID), "--gid", str(UID)),
        *("--disable-userns", "--cap-drop", "ALL"),
        *("--hostname", HOST_NAME),
        *("--die-with-parent", "--new-session"),
        *("--seccomp", str(SECCOMP_DESCRIPTOR), "--info-fd", str(INFO_DESCRIPTOR)),
    ]
    if waits:
        words += ["--block-fd", str(WAIT_DESCRIPTOR)]
    for directory in layout.directories:
        words += ["--ro-bind", directory, directory]
    for directory in layout.covered:
        words += ["--perms", "0755", "--size", "4096", "--tmpfs", directory, "--remount-ro", directory]
    for target, place in layout.links:
        words += ["--symlink", target, place]
    words += ["--ro-bind", sources.etc, "/etc"]
    for name in layout.etc:
        words += ["--ro-bind", f"/etc/{name}", f"/etc/{name}"]
    memory = limits.memory_mb * _MIB
    words += [
        *("--proc", "/proc", "--dev", "/dev"),
        *("--perms", "1777", "--size", str(memory // 8), "--tmpfs", "/dev/shm"),  # noqa: S108
        *("--remount-ro", "/dev"),
        *("--perms", "1777", "--size", str(memory // 4), "--tmpfs", "/tmp"),  # noqa: S108
        *("--perms", "0700", "--size", str(memory // 4), "--tmpfs", HOME),
        *("--ro-bind", sources.cli, base.CLI),
        *("--ro-bind", sources.gateway_socket, base.GATEWAY_SOCKET),
        *("--bind", sources.workspace, base.WORKSPACE),
    ]
    if sources.config is not None:
        words += ["--bind", sources.config, base.CONFIG_DIR]
    words += ["--remount-ro", "/", "--chdir", base.WORKSPACE, "--clearenv"]
    for name, value in {**ENVIRONMENT, **env}.items():
        words += ["--setenv", name, value]
    return words


def inner_command(argv: Sequence[str], *, processes: int) -> list[str]:
    """The command as bubblewrap runs it: the starter, then ``argv``.

    Raises:
        ValueError: the command is refused (:func:`check_command`).
    """
    check_command(argv)
    return ["/bin/sh", "-c", STARTER, "starter", str(processes), *argv]
