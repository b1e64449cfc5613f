"""What is counted. The base counts nothing; :mod:`server.telemetry.prometheus` counts for a scraper."""

from __future__ import annotations

from typing import Final

from server.errors import ErrorCode
from server.models import LedgerEntry, TurnRecord


class Metrics:
    """Told what happens. Of a server that nobody scrapes: it forgets all of it.

    No principal, session, path or text of a user is ever a label (row T04), and the number of labels is bounded.
    """

    def spawned(self, seconds: float, *, warm: bool) -> None:
        """A session began; ``seconds`` from the call until it was durable and had its sandbox."""

    def turn_ended(self, turn: TurnRecord) -> None:
        """A turn is over."""

    def failed(self, code: ErrorCode) -> None:
        """A call was answered with an error."""

    def model_request(self, entry: LedgerEntry, *, waited_s: float | None, first_byte_s: float | None) -> None:
        """A model request is over.

        Args:
            entry: what the ledger says of it.
            waited_s: from its arrival at the gateway until it was forwarded (budgets, rate limits); None: never was.
            first_byte_s: from then until the upstream's first byte; None: none came.
        """


NO_METRICS: Final = Metrics()
"""For a server that nobody scrapes."""
