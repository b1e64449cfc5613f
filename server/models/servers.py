"""The server processes of one store, and what they ask of each other."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from server.models.base import Record


class ServerRecord(Record):
    """A server process that shares this store."""

    id: str
    pid: int
    host: str
    started_at: datetime
    heartbeat_at: datetime
    silent_for: timedelta = timedelta()
    """Since the heartbeat, by the clock that it was written by; told when it is read."""


class Command(Record):
    """A request for a session that another server process owns."""

    id: str
    session_id: str
    kind: str
    payload: dict[str, Any]
    created_at: datetime
