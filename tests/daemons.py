"""Helpers for tests of the shared daemon: shims as processes, and a home whose daemon is gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, cast

from rookery.daemon.commands import status
from tests.house import settings_for
from tests.surface import Wire, alive, serving

CONNECT: Final = [sys.executable, "-m", "rookery", "connect"]

PATIENCE_S: Final = 60.0


def connecting(home: Path, **variables: str) -> AbstractContextManager[Wire]:
    """`rookery connect` as a process, spoken to in raw lines."""
    return serving(home, command=CONNECT, **variables)


def daemon_of(home: Path) -> dict[str, Any] | None:
    """What the home's daemon says of itself."""
    told = status(settings_for(home))
    return None if told is None else cast(dict[str, Any], json.loads(told))


def gone(pid: int) -> None:
    """Wait until a process has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while alive({pid}):
        assert time.monotonic() < deadline, "the process does not end"
        time.sleep(0.05)


@contextmanager
def daemon_home(home: Path) -> Iterator[Path]:
    """A home; its daemon, if any is left, is ended."""
    try:
        yield home
    finally:
        left = daemon_of(home)
        if left is not None:
            os.kill(left["pid"], signal.SIGTERM)
            gone(left["pid"])
