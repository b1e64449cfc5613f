"""Processes of the sandbox: started under a user, bounded, and ended with all that came from them.

Each tree of processes carries a supplementary group of its own, which gives no right to anything. The kernel hands it
down to every descendant, and a process without privileges cannot lay it off: so whoever came from a process is found
again, whatever session or parent it moved to.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TERM_GRACE_S = 3.0
"""How long processes may take to leave when they are asked to, before they are killed."""

KILL_ROUNDS = 200
"""Looks for survivors, 25 ms apart, before they are given up."""

FIRST_MARK, LAST_MARK = 60_000, 64_999
"""Group ids that mark trees of processes: above those that images give, below the 65,536 of many namespaces."""

NO_SUCH_PROGRAM = 127
NOT_EXECUTABLE = 126

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 22, 38, 36
_SECCOMP_MODE_FILTER = 2
_INSTRUCTION_BYTES = 8

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


class Identity:
    """Who a process runs as."""

    def __init__(self, uid: int, gid: int) -> None:
        self.uid = uid
        self.gid = gid


ROOT = Identity(0, 0)


class Child:
    """One started process. ``status`` is set when it was reaped.

    Attributes:
        stdin, stdout, stderr: our ends of its socket pairs, non-blocking.
    """

    def __init__(self, pid: int, mark: int, streams: Sequence[socket.socket]) -> None:
        self.pid = pid
        self.mark = mark
        self.stdin, self.stdout, self.stderr = streams
        self.status: int | None = None
        self.ended = asyncio.Event()

    def close(self) -> None:
        """Close our ends."""
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()


class StartError(Exception):
    """A process could not be started; ``code`` is what a shell would say."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Children:
    """All processes of the relay. Exactly one, on the event loop that it is made on."""

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}
        self._next_mark = FIRST_MARK
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        identity: Identity,
        *,
        limits: Mapping[str, int],
        seccomp: bytes = b"",
    ) -> Child:
        """Start a process with socket pairs as its streams: unlike a pipe, nobody can open one through ``/proc``.

        Args:
            argv: the command.
            env: its whole environment.
            cwd: its working directory.
            identity: who it runs as; it cannot become anybody else unless that is root.
            limits: names of ``resource.RLIMIT_*`` without the prefix, and their values.
            seccomp: filter program; refused where it cannot be set.

        Raises:
            StartError: it was not started.
        """
        mark = self._free_mark()
        ours: list[socket.socket] = []
        theirs: list[socket.socket] = []
        for _ in range(3):
            own, other = socket.socketpair()
            ours.append(own)
            theirs.append(other)
        bounded = [(getattr(resource, "RLIMIT_" + name), value) for name, value in limits.items()]
        program = ctypes.create_string_buffer(seccomp, len(seccomp)) if seccomp else None

        def prepare() -> None:
            for number, value in bounded:
                resource.setrlimit(number, (value, value))
            if identity.uid != 0 and _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "no_new_privs")
            if program is not None:
                filtering = _Program(len(seccomp) // _INSTRUCTION_BYTES, ctypes.cast(program, ctypes.c_char_p))
                if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filtering), 0, 0) != 0:
                    raise OSError(ctypes.get_errno(), "seccomp")

        try:
            process = subprocess.Popen(
                list(argv),
                stdin=theirs[0].fileno(),
                stdout=theirs[1].fileno(),
                stderr=theirs[2].fileno(),
                env=dict(env),
                cwd=cwd,
                user=identity.uid,
                group=identity.gid,
                extra_groups=[mark],
                umask=0o022,
                start_new_session=True,
                preexec_fn=prepare,
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            _close_all(ours)
            raise StartError(NO_SUCH_PROGRAM, str(error)) from error
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            _close_all(ours)
            raise StartError(NOT_EXECUTABLE, str(error)) from error
        finally:
            _close_all(theirs)
        # Reaped by us; the object must not believe that it still runs.
        process.returncode = 0
        for own in ours:
            own.setblocking(False)
        child = Child(process.pid, mark, ours)
        self._children[child.pid] = child
        return child

    def _free_mark(self) -> int:
        taken = {child.mark for child in self._children.values()}
        for _ in range(FIRST_MARK, LAST_MARK + 1):
            mark = self._next_mark
            self._next_mark = FIRST_MARK if mark == LAST_MARK else mark + 1
            if mark not in taken:
                return mark
        raise StartError(NOT_EXECUTABLE, "too many processes")

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                child.status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                child.ended.set()

    async def end(self, child: Child, *, grace_s: float = TERM_GRACE_S) -> None:
        """End a process with all that came from it: TERM to its group, then KILL to the whole tree. Bounded."""
        if child.status is None and grace_s > 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGTERM)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(child.ended.wait(), grace_s)
        await self._kill({child.mark})
        if child.status is None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(child.ended.wait(), TERM_GRACE_S)

    async def end_all_of(self, uid: int) -> None:
        """Kill every process of a user. Bounded."""
        await self._kill(set(), uid=uid)

    async def _kill(self, marks: set[int], uid: int = -1) -> None:
        for _ in range(KILL_ROUNDS):
            found = _marked(marks, uid)
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                return
            await asyncio.sleep(0.025)


def _marked(marks: set[int], uid: int) -> list[int]:
    """Processes that carry one of the marks, or belong to the user; those that are only waiting to be reaped not."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
        except (OSError, ValueError):
            continue
        if status.get("State", "").strip()[:1] in ("Z", "X"):
            continue
        groups = {int(group) for group in status.get("Groups", "").split()}
        if groups & marks or int(status.get("Uid", "-1").split()[0]) == uid:
            found.append(int(entry.name))
    return found


def _close_all(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        each.close()


def request_of(payload: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a start, checked for their kinds.

    Raises:
        StartError: one is of another kind.
    """
    argv, env = payload.get("argv"), payload.get("env")
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        raise StartError(NOT_EXECUTABLE, "the command is no list of words")
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise StartError(NOT_EXECUTABLE, "the environment is no table of words")
    return payload
