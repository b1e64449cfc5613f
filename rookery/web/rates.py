"""How many requests a principal may make in a minute."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MAX_PRINCIPALS: Final = 10_000
"""Remembered at once; one that is forgotten has been quiet for longest."""


class Rates:
    """A bucket of tokens for each principal: bursts of a minute's worth, and no more than that over time.

    Args:
        per_minute: how many; None: as many as they like.
        now: monotonic seconds.
    """

    def __init__(self, per_minute: int | None, now: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_for(self, principal: str) -> int:
        """Count a request; 0 when it may be made, else the whole seconds to wait, and it is not counted."""
        if self.per_minute is None:
            return 0
        now = self._now()
        left, since = self._buckets.pop(principal, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - since) * self.per_minute / 60)
        granted = left >= 1
        self._buckets[principal] = (left - 1 if granted else left, now)
        if len(self._buckets) > MAX_PRINCIPALS:
            self._buckets.popitem(last=False)
        return 0 if granted else max(1, math.ceil((1 - left) * 60 / self.per_minute))
