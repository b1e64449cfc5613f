"""A compiled policy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from policies.catalogue import NEVER_OFFERED, OLD_NAMES, TOOLS, canonical_name
from policies.errors import PolicyError

PRESETS: Final = ("workspace",)
"""Names of the policies that come with Rookery."""


@dataclass(frozen=True)
class Policy:
    """What an agent may do."""

    name: str
    tools: frozenset[str]
    network: tuple[str, ...] = ()
    server_tools: frozenset[str] = frozenset()
    limits: Any = None

    @property
    def digest(self) -> str:
        """Stable hash of the whole policy."""
        return hashlib.sha256(f"{self.name}{sorted(self.tools)}".encode()).hexdigest()

    def offered_tools(self, asked: Sequence[str] | None = None) -> tuple[str, ...]:
        """The explicit tool list for the CLI."""
        wanted = None if asked is None else {canonical_name(name) for name in asked}
        return tuple(
            name
            for name in TOOLS
            if name in self.tools and name not in OLD_NAMES and (wanted is None or name in wanted)
        )


def load_policy(name: str, directory: Path | None = None) -> Policy:
    """A preset, or a policy of the directory.

    Raises:
        PolicyError: there is no policy of that name.
    """
    if name not in PRESETS:
        raise PolicyError(f"there is no policy named {name[:80]!r}", remedy=f"known policies: {', '.join(PRESETS)}")
    return Policy(name, frozenset(TOOLS) - NEVER_OFFERED - {"WebFetch", "WebSearch", "Skill"})
