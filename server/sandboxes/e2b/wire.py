"""The wire to a relay: bytes both ways, until it breaks. What runs over it is the channel's business."""

from __future__ import annotations

from typing import Protocol


class Wire(Protocol):
    """One connection to a relay."""

    async def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            OSError, RookeryError: it is broken.
        """
        ...

    async def receive(self) -> bytes:
        """The next bytes; empty when it is over, however that came."""
        ...

    async def aclose(self) -> None:
        """Close it. Bounded, idempotent, never raises."""
        ...
