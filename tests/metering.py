"""Looking at the metered time of sandboxes in a home's store, whatever becomes of the server that wrote it."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import anyio

from tests.house import PATIENCE_S

UNWRITTEN: Final = (
    "SELECT since, heartbeat_at FROM running_sandboxes JOIN servers ON servers.id = owner WHERE session_id = ?"
)


async def long_unwritten(home: Path, session_id: str) -> None:
    """Wait until a sandbox's server has been heard of a second and more after what it last wrote of it."""
    with anyio.fail_after(PATIENCE_S):
        while unwritten(home, session_id)[1] < timedelta(seconds=1):
            await anyio.sleep(0.05)


def unwritten(home: Path, session_id: str) -> tuple[datetime | None, timedelta]:
    """Since when nothing is written of a session's sandbox, and how long after that its server was heard of last."""
    found = _rows(home, UNWRITTEN, session_id)
    if not found:
        return None, timedelta()
    since, heard = (datetime.fromisoformat(moment) for moment in found[0])
    return since, heard - since


def stretches(home: Path, session_id: str) -> list[tuple[datetime, datetime, float]]:
    """Begin, end and seconds of each line in the ledger for a session's sandbox, in their order."""
    query = "SELECT started_at, ended_at, milliseconds FROM sandbox_time WHERE session_id = ? ORDER BY started_at"
    moment = datetime.fromisoformat
    return [(moment(start), moment(end), count / 1000) for start, end, count in _rows(home, query, session_id)]


def _rows(home: Path, query: str, session_id: str) -> list[Any]:
    with sqlite3.connect(home / "rookery.db") as database:
        found = database.execute(query, (session_id,)).fetchall()
    database.close()
    return found
