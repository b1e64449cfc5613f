"""The seccomp filter of every sandbox, assembled as classic BPF.

What it refuses is what an agent's work never needs and what has opened sandboxes before: tracing and reading other
processes (the agent's commands run under the same uid as its CLI), mounts and namespaces, the kernel's keyrings,
BPF, io_uring, modules, the terminal's input queue, exotic socket families. Calls younger than the newest reviewed
one do not exist inside. A foreign ABI (32 bit) kills the process, because its numbers mean other calls.

Sources: ``seccomp(2)``, ``linux/seccomp.h``, ``linux/filter.h``, ``linux/bpf_common.h``; rows S01, S02 and S05 of the
catalogue of attacks. Arguments are compared by their low 32 bits, which is what the kernel uses of them
(CVE-2019-10063 was a comparison of all 64).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from server.sandboxes.bubblewrap.syscalls import ARCHITECTURES, HIGHEST_REVIEWED, Architecture

_LOAD: Final = 0x20
"""``BPF_LD | BPF_W | BPF_ABS``: accumulator = 32 bits of ``seccomp_data`` at ``k``."""
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER: Final = 0x25
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06

_NUMBER: Final = 0
_ARCH: Final = 4

RETURN_ALLOW: Final = 0x7FFF_0000
RETURN_ERRNO: Final = 0x0005_0000
RETURN_KILL_PROCESS: Final = 0x8000_0000

_NAMESPACE_FLAGS: Final = 0x7E02_0000
"""``CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET`` of ``linux/sched.h``."""

_REFUSED_IOCTLS: Final = (0x5412, 0x541C, 0x5423)
"""``TIOCSTI``, ``TIOCLINUX`` (typing into a terminal), ``TIOCSETD`` (loading line disciplines)."""

_ALLOWED_PERSONALITIES: Final = (0x0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)
"""Linux, 32-bit Linux, both with a 2.6 version, and the question which one is set."""

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_ROUTE_NETLINK: Final = 0
"""``NETLINK_ROUTE``, which C libraries ask for the list of interfaces."""

NO_SUCH_CALL: Final = (
    "clone3",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "memfd_secret",
    "statmount",
    "listmount",
    "userfaultfd",
)
"""Answered with ``ENOSYS``: programs know how to do without. ``clone3`` hides its flags in memory, out of a filter's
sight, and the C library falls back to ``clone``."""

REFUSED: Final = (
    # Other processes: their memory, descriptors and registers.
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "process_madvise", "process_mrelease"),
    # Mounts, namespaces, roots, file handles that step around paths.
    *("mount", "umount2", "pivot_root", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick"),
    *("mount_setattr", "unshare", "setns", "chroot", "name_to_handle_at", "open_by_handle_at", "uselib", "sysfs"),
    *("ustat", "quotactl", "quotactl_fd", "fanotify_init", "fanotify_mark", "nfsservctl", "lookup_dcookie"),
    # The kernel: keyrings, programs, modules, tracing, logs, hardware.
    *("add_key", "request_key", "keyctl", "bpf", "perf_event_open", "kexec_load", "kexec_file_load"),
    *("create_module", "init_module", "finit_module", "delete_module", "get_kernel_syms", "query_module"),
    *("syslog", "_sysctl", "vserver", "iopl", "ioperm", "modify_ldt", "vhangup", "acct", "reboot"),
    *("swapon", "swapoff", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
    # Memory placement, a source of kernel bugs that containers never needed.
    *("mbind", "set_mempolicy", "set_mempolicy_home_node", "migrate_pages", "move_pages"),
)
"""Answered with ``EPERM``."""


class _Instruction(NamedTuple):
    """One ``struct sock_filter``: operation, how many instructions to skip when true or false, operand."""

    code: int
    if_true: int
    if_false: int
    operand: int


def _argument(index: int) -> int:
    """Offset of the low 32 bits of an argument; both architectures are little-endian."""
    return 16 + 8 * index


def _load(offset: int) -> _Instruction:
    return _Instruction(_LOAD, 0, 0, offset)


def _answer(verdict: int) -> _Instruction:
    return _Instruction(_RETURN, 0, 0, verdict)


def _refuse(code: int) -> _Instruction:
    return _answer(RETURN_ERRNO | code)


def _for_call(number: int, body: Sequence[_Instruction]) -> list[_Instruction]:
    """Run ``body`` (which must answer) when the accumulator holds ``number``."""
    return [_Instruction(_JUMP_EQUAL, 0, len(body), number), *body]


def _any_of(values: Sequence[int], verdict: _Instruction) -> list[_Instruction]:
    """Answer ``verdict`` when the accumulator is one of ``values``."""
    program: list[_Instruction] = []
    for value in values:
        program += [_Instruction(_JUMP_EQUAL, 0, 1, value), verdict]
    return program


def _instructions(architecture: Architecture) -> list[_Instruction]:
    numbers = architecture.numbers
    allow = _answer(RETURN_ALLOW)
    program = [
        _load(_ARCH),
        _Instruction(_JUMP_EQUAL, 1, 0, architecture.audit),
        _answer(RETURN_KILL_PROCESS),
        _load(_NUMBER),
        # Above the reviewed calls lie future ones, and on x86_64 the x32 ABI with its own flag bit.
        _Instruction(_JUMP_GREATER, 0, 1, HIGHEST_REVIEWED),
        _refuse(errno.ENOSYS),
    ]
    for name in NO_SUCH_CALL:
        program += _for_call(numbers[name], [_refuse(errno.ENOSYS)]) if name in numbers else []
    for name in REFUSED:
        program += _for_call(numbers[name], [_refuse(errno.EPERM)]) if name in numbers else []
    program += _for_call(
        numbers["clone"],
        [
            _load(_argument(0)),
            _Instruction(_JUMP_ANY_BIT, 0, 1, _NAMESPACE_FLAGS),
            _refuse(errno.EPERM),
            allow,
        ],
    )
    program += _for_call(
        numbers["ioctl"],
        [_load(_argument(1)), *_any_of(_REFUSED_IOCTLS, _refuse(errno.EPERM)), allow],
    )
    program += _for_call(
        numbers["personality"],
        [_load(_argument(0)), *_any_of(_ALLOWED_PERSONALITIES, allow), _refuse(errno.EPERM)],
    )
    for name in ("socket", "socketpair"):
        program += _for_call(
            numbers[name],
            [
                _load(_argument(0)),
                *_any_of((_AF_UNIX, _AF_INET, _AF_INET6), allow),
                _Instruction(_JUMP_EQUAL, 1, 0, _AF_NETLINK),
                _refuse(errno.EAFNOSUPPORT),
                _load(_argument(2)),
                _Instruction(_JUMP_EQUAL, 0, 1, _ROUTE_NETLINK),
                allow,
                _refuse(errno.EAFNOSUPPORT),
            ],
        )
    program.append(allow)
    return program


def filter_program(machine: str) -> bytes:
    """The filter for ``bwrap --seccomp``: an array of ``struct sock_filter``.

    Args:
        machine: as ``platform.machine()`` names it.

    Raises:
        ValueError: no filter was written for this architecture. A sandbox must not start without one.
    """
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        raise ValueError(f"no seccomp filter for the architecture {machine!r}; known: {', '.join(ARCHITECTURES)}")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in _instructions(architecture))
