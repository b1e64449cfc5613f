"""Time, identifiers and randomness, in one place, so that a test can hold them still.

Wall time is for records and is always UTC; waits and timeouts use anyio's monotonic clock, never this one.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Clock:
    """The source of wall time and identifiers. Replace it by a subclass in tests."""

    def now(self) -> datetime:
        """The present time in UTC, with time zone."""
        return datetime.now(UTC)

    def session_id(self) -> str:
        """A new session id: a random UUID (122 random bits), which the CLI also takes as ``--session-id``."""
        return str(uuid.uuid4())

    def identifier(self, kind: str) -> str:
        """A new unguessable identifier ``<kind>_<32 hexadecimal digits>`` (128 random bits)."""
        return f"{kind}_{secrets.token_hex(16)}"

    def secret(self) -> str:
        """A new secret of 256 random bits, safe in URLs and headers."""
        return secrets.token_urlsafe(32)


SYSTEM_CLOCK = Clock()
