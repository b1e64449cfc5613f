"""``rookery daemon status`` and ``rookery daemon stop``."""

from __future__ import annotations

import json
from typing import Any, Final

from rookery.daemon.hello import question, read_line, write_line
from rookery.daemon.place import LIFE_LOCK, Place
from server.errors import ErrorCode, RookeryError
from server.settings import Settings

STOP_S: Final = 60.0
"""Longest that a daemon takes to leave, with work that is drained before."""

ANSWER_S: Final = 10.0


def status(settings: Settings) -> str | None:
    """What the home's daemon says of itself, as JSON; None when there is none."""
    answer = _ask(settings, "status")
    return None if answer is None else json.dumps(answer["status"], indent=2)


def stop(settings: Settings) -> bool:
    """End the home's daemon and wait until it has gone; whether there was one.

    Agents at work get ``ROOKERY_DRAIN_S``, then they are interrupted and can be continued.

    Raises:
        RookeryError: ``timeout``: it does not leave.
    """
    if _ask(settings, "stop") is None:
        return False
    place = Place(settings.home)
    try:
        with place.locked(LIFE_LOCK, STOP_S + settings.drain_s) as gone:
            if not gone:
                raise RookeryError(
                    ErrorCode.TIMEOUT,
                    "The daemon was told to leave and has not; `rookery daemon status` names its process.",
                )
    finally:
        place.close()
    return True


def _ask(settings: Settings, want: str) -> dict[str, Any] | None:
    place = Place(settings.home)
    try:
        connection = place.connect()
        if connection is None:
            return None
        with connection:
            connection.settimeout(ANSWER_S)
            write_line(connection, question(want))
            return read_line(connection)
    finally:
        place.close()
