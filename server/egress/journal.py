"""What a proxy decided: each decision to the log, and few words of all of them to the session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import anyio
import structlog

from server.egress.targets import Target

log = structlog.get_logger(__name__)

GATHER_S: Final = 0.5
"""Decisions that lie so close together become one notice."""

MAX_NOTICES: Final = 100
"""Of one agent's life: a program that knocks at a million doors fills no store."""

MAX_LINES: Final = 20
"""Of one notice."""

MAX_KINDS: Final = 200
"""Different decisions counted apart between two notices."""

MAX_SHOWN: Final = 120
"""Characters of a path, or of what was asked for when it names no host."""

Report = Callable[[str], Awaitable[None]]
"""Takes a notice for the session."""


@dataclass(frozen=True)
class Judgement:
    """One decision about a connection or a request."""

    verb: str
    """``CONNECT``, or the method of a plain request."""
    target: str
    """``host:port``, or what was asked for in its place, bounded."""
    allowed: bool
    because: str = ""
    """Why not."""
    path: str = field(default="", compare=False)
    """Of a request that could be read: without its query, bounded. For the log only."""

    def __str__(self) -> str:
        if self.allowed:
            return f"allowed {self.target}"
        return f"refused {self.target} ({self.because})"


def shown_path(target: Target) -> str:
    """A request's path as it may be shown: without the query, which often holds secrets."""
    return target.path.split("?", 1)[0][:MAX_SHOWN]


class Journal:
    """The decisions of one outlet."""

    def __init__(self) -> None:
        self._counts: Counter[Judgement] = Counter()
        self._changed = anyio.Event()
        self._told = 0

    def note(self, judgement: Judgement) -> None:
        """Write a decision down."""
        log.info(
            "egress_decision",
            verb=judgement.verb,
            target=judgement.target,
            allowed=judgement.allowed,
            because=judgement.because,
            path=judgement.path,
        )
        if judgement in self._counts or len(self._counts) < MAX_KINDS:
            self._counts[judgement] += 1
        else:
            self._counts[Judgement("", "other hosts", allowed=False, because="too many to name")] += 1
        self._changed.set()

    async def serve(self, report: Report) -> None:
        """Report in notices until cancelled; what is still untold then is told at once."""
        try:
            while self._told < MAX_NOTICES:
                await self._changed.wait()
                await anyio.sleep(GATHER_S)
                await self._tell(report)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(GATHER_S):
                await self._tell(report)

    async def _tell(self, report: Report) -> None:
        counts, self._counts, self._changed = self._counts, Counter(), anyio.Event()
        if not counts or self._told >= MAX_NOTICES:
            return
        self._told += 1
        lines = [
            f"Network: {judgement}" + (f", {count} times" if count > 1 else "")
            for judgement, count in counts.most_common(MAX_LINES)
        ]
        if len(counts) > MAX_LINES:
            lines.append(f"Network: and {len(counts) - MAX_LINES} other decisions")
        if self._told == MAX_NOTICES:
            lines.append("Network: further decisions are in the server's log only")
        await report("\n".join(lines))
