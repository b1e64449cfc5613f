"""Holding the idle agent of a sandbox still, with the proof that nothing else runs in there.

All processes of a sandbox descend from the first one of its pid namespace. While that one and the agent are stopped
and there is no third, nothing in the sandbox can change a file, start a process or wake another. It needs no rights
beyond those by which the server may kill its sandboxes, and no control groups.

Sources: signal(7), pid_namespaces(7), and proc(5): the lists of children are exact once the parents are stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

_PATIENCE_S: Final = 1.0
"""Longest wait until all threads have stopped; one in the midst of a long disk access stops only after it."""

_PAUSE_S: Final = 0.001
_STOPPED: Final = b"T"


class Stillness:
    """Stops and continues what runs in one sandbox.

    Args:
        init: the first process of the pid namespace, as the host sees it.
        descriptor: its pidfd, which stays the caller's.
    """

    def __init__(self, init: int, descriptor: int) -> None:
        self._init = init
        self._descriptor = descriptor
        self._agent: int | None = None

    @property
    def held(self) -> bool:
        """Whether everything is stopped."""
        return self._agent is not None

    @property
    def agent(self) -> int | None:
        """A pidfd of the agent while it is held: readable if somebody killed it, which the first process cannot see."""
        return self._agent

    def hold(self) -> bool:
        """Stop everything, if there is nothing but one process below the first; whether that is certain.

        When it is not, all goes on as before. Blocks for some milliseconds, at most a second.
        """
        if self._agent is not None:
            return True
        with contextlib.suppress(OSError):
            processes = _children(self._init)
            if len(processes) == 1 and not _children(processes[0]):
                self._agent = os.pidfd_open(processes[0])
                # Looked at again, now that the number cannot come to mean another process.
                if _children(self._init) == processes:
                    self._signal(signal.SIGSTOP)
                    if self._comes_to_rest(processes[0]):
                        return True
        self.release()
        return False

    def release(self) -> None:
        """Let everything go on. Idempotent."""
        if self._agent is not None:
            self._signal(signal.SIGCONT)
            os.close(self._agent)
            self._agent = None

    def _signal(self, number: int) -> None:
        for target in (self._descriptor, self._agent):
            if target is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(target, number)

    def _comes_to_rest(self, agent: int) -> bool:
        deadline = time.monotonic() + _PATIENCE_S
        while not (_is_stopped(self._init) and _is_stopped(agent)):
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_S)
        return _children(self._init) == [agent] and not _children(agent)


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def _is_stopped(process: int) -> bool:
    """Whether each thread has stopped. Threads that end meanwhile make it false: they are looked at again."""
    try:
        states = [(task / "stat").read_bytes() for task in Path(f"/proc/{process}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return False
    # The name before it may hold anything, parentheses too.
    return all(state.rpartition(b") ")[2][:1] == _STOPPED for state in states)
